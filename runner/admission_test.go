package runner

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

const gib = 1 << 30

func mem(n float64) sandbox.Limits { return sandbox.Limits{Memory: int64(n * gib)} }

func admit(t *testing.T, a *Admission, id string, l sandbox.Limits) (release func()) {
	t.Helper()
	release, err := a.Admit(t.Context(), id, l, func(reason string) { t.Errorf("job %s has to wait: %s", id, reason) })
	if err != nil {
		t.Fatal(err)
	}
	return release
}

// entrant is a job that waits for admission.
type entrant struct {
	mu      sync.Mutex
	reasons []string
	release func()
	err     error
	done    bool
}

func enter(ctx context.Context, a *Admission, id string, l sandbox.Limits) *entrant {
	e := &entrant{}
	go func() {
		release, err := a.Admit(ctx, id, l, func(r string) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.reasons = append(e.reasons, r)
		})
		e.mu.Lock()
		defer e.mu.Unlock()
		e.release, e.err, e.done = release, err, true
	}()
	synctest.Wait()
	return e
}

func (e *entrant) in() bool {
	synctest.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.release != nil
}

func (e *entrant) reason() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.reasons) == 0 {
		return ""
	}
	return e.reasons[len(e.reasons)-1]
}

func TestAdmissionRefusesWhatNeverFits(t *testing.T) {
	a := NewAdmission(Capacity{CPU: 2000, Memory: 4 * gib, Jobs: 2})
	for _, c := range []struct {
		limits sandbox.Limits
		want   []string
	}{
		{mem(4.5), []string{"4.5 GiB", "4 GiB", "capacity.memory"}},
		{sandbox.Limits{CPU: 2500}, []string{"2.5 CPUs", "hold 2 CPUs:", "capacity.cpu"}},
	} {
		_, err := a.Admit(t.Context(), "big", c.limits, nil)
		if !errors.Is(err, ErrTooBig) || !errors.Is(err, sandbox.ErrDenied) {
			t.Errorf("%+v: %v, want ErrTooBig", c.limits, err)
		}
		for _, part := range c.want {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%v does not say %q", err, part)
			}
		}
	}
	if _, err := NewAdmission(Capacity{}).Admit(t.Context(), "any", sandbox.Limits{}, nil); !errors.Is(err, ErrTooBig) {
		t.Errorf("the zero capacity admits a job: %v", err)
	}
}

func TestAdmissionSaysWhatIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Capacity{CPU: 4000, Memory: 23 * gib, Jobs: 5})
		r1 := admit(t, a, "a", mem(10))
		admit(t, a, "b", mem(10))
		admit(t, a, "c", sandbox.Limits{CPU: 3500, Memory: 2.5 * gib})
		e := enter(t.Context(), a, "d", sandbox.Limits{CPU: 1000, Memory: 1.5 * gib})
		if want := "waiting for 1.5 GiB of memory: 3 jobs hold 22.5 of 23 GiB"; e.reason() != want {
			t.Errorf("%q, want %q", e.reason(), want)
		}
		r1()
		r1() // safe twice
		if want := "waiting for 1 CPU: 2 jobs hold 3.5 of 4 CPUs"; e.in() || e.reason() != want {
			t.Errorf("%q, want %q", e.reason(), want)
		}
		if h := a.Held(); h.Memory != 12.5*gib || h.Jobs != 2 {
			t.Errorf("held: %+v", h)
		}
	})
}

func TestAdmissionSmallJobsPassABigOneForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Capacity{CPU: 1000, Memory: 4 * gib, Jobs: 100})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		running := admit(t, a, "running", mem(2))
		big := enter(ctx, a, "big", mem(4))
		small := enter(ctx, a, "small", mem(1))
		if big.in() || !small.in() {
			t.Fatal("the small job does not pass the big one")
		}
		time.Sleep(Patience) // virtual
		late := enter(ctx, a, "late", mem(1))
		if late.in() || !strings.Contains(late.reason(), "its turn: job big") {
			t.Fatalf("a job passes one that has waited for %s: %q", Patience, late.reason())
		}
		small.release()
		running()
		if !big.in() || late.in() {
			t.Fatal("the big job is not the next")
		}
		big.release()
		if !late.in() {
			t.Fatal("the late job is forgotten")
		}
	})
}

func TestAdmissionCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Capacity{CPU: 1000, Memory: 4 * gib, Jobs: 100})
		release := admit(t, a, "running", mem(3))
		ctx, cancel := context.WithCancelCause(t.Context())
		big := enter(ctx, a, "big", mem(4))
		time.Sleep(2 * Patience) // virtual
		behind := enter(t.Context(), a, "behind", mem(1))
		if behind.in() {
			t.Fatal("passed")
		}
		cancel(ErrCancelled)
		if !behind.in() || !errors.Is(big.err, ErrCancelled) {
			t.Errorf("behind a cancelled job: in %v, the cancelled one has %v", behind.in(), big.err)
		}
		behind.release()
		release()
		if a.Held() != (Capacity{}) {
			t.Errorf("held at the end: %+v", a.Held())
		}
		if _, err := a.Admit(ctx, "late", mem(1), nil); !errors.Is(err, ErrCancelled) || a.Held() != (Capacity{}) {
			t.Errorf("with a context that has ended: %v, held %+v", err, a.Held())
		}
	})
}

// TestAdmissionNeverOverCommits lets random jobs come, wait, give up and go.
func TestAdmissionNeverOverCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		capacity := Capacity{CPU: 4000, Memory: 8 * gib, Jobs: 6}
		a := NewAdmission(capacity)
		var mu sync.Mutex
		var held Capacity
		var admitted int
		var wg sync.WaitGroup
		r := rand.New(rand.NewPCG(7, 8))
		for i := range 500 {
			limits := sandbox.Limits{CPU: sandbox.MilliCPU(r.IntN(4001)), Memory: r.Int64N(8*gib + 1)}
			arrive, run, patience := time.Duration(r.IntN(1000))*time.Second, time.Duration(r.IntN(20))*time.Second, time.Hour
			if r.IntN(5) == 0 {
				patience = time.Duration(r.IntN(100)) * time.Second
			}
			wg.Go(func() {
				time.Sleep(arrive) // virtual
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				release, err := a.Admit(ctx, fmt.Sprint(i), limits, nil)
				if err != nil {
					if patience == time.Hour {
						t.Errorf("job %d was not admitted in an hour", i)
					}
					return
				}
				mu.Lock()
				admitted++
				held.CPU, held.Memory, held.Jobs = held.CPU+limits.CPU, held.Memory+limits.Memory, held.Jobs+1
				if held.CPU > capacity.CPU || held.Memory > capacity.Memory || held.Jobs > capacity.Jobs {
					t.Errorf("over-committed: %+v", held)
				}
				mu.Unlock()
				time.Sleep(run) // virtual
				mu.Lock()
				held.CPU, held.Memory, held.Jobs = held.CPU-limits.CPU, held.Memory-limits.Memory, held.Jobs-1
				mu.Unlock()
				release()
			})
		}
		wg.Wait()
		if a.Held() != (Capacity{}) || admitted < 300 {
			t.Errorf("%d admitted, held at the end: %+v", admitted, a.Held())
		}
	})
}

// TestWaitRoom waits for room and takes none.
func TestWaitRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Capacity{CPU: 2000, Memory: 1 << 30, Jobs: 10})
		limits := sandbox.Limits{CPU: 1500}
		if err := a.WaitRoom(t.Context(), limits); err != nil || a.Held() != (Capacity{}) {
			t.Error(err, a.Held())
		}
		if err := a.WaitRoom(t.Context(), sandbox.Limits{CPU: 3000}); !errors.Is(err, ErrTooBig) {
			t.Error(err)
		}
		release, err := a.Admit(t.Context(), "a", limits, nil)
		if err != nil {
			t.Fatal(err)
		}
		cause := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Hour, cause)
		defer cancel()
		if err := a.WaitRoom(ctx, limits); !errors.Is(err, cause) {
			t.Error(err)
		}
		// Who waits for longer comes first.
		admitted := make(chan func())
		go func() {
			r, _ := a.Admit(t.Context(), "b", limits, nil)
			admitted <- r
		}()
		synctest.Wait()
		room := make(chan error, 1)
		go func() { room <- a.WaitRoom(t.Context(), limits) }()
		synctest.Wait()
		release()
		releaseB := <-admitted
		synctest.Wait()
		select {
		case <-room:
			t.Error("there is no room")
		default:
		}
		releaseB()
		if err := <-room; err != nil {
			t.Error(err)
		}
	})
}
