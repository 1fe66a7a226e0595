package buildkit

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// take leases a scope's worker and returns it.
func take(t *testing.T, ws *Workers, of scope.Scope) *Lease {
	t.Helper()
	l, err := ws.Lease(t.Context(), of)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestCloneOfTrusted(t *testing.T) {
	for name, c := range map[string]struct {
		base   error
		cloner sandbox.Exit
		specs  int // until the worker runs
		warns  bool
	}{
		"clone":             {specs: 1},
		"nothing there yet": {base: sandbox.ErrNoState, specs: 1},
		"cannot copy":       {base: errors.New("no"), specs: 1, warns: true},
		"broken databases":  {cloner: sandbox.Exit{Code: 2}, specs: 2, warns: true},
	} {
		t.Run(name, func(t *testing.T) {
			m, log := newMachine(t), sandbox.NewTail(1000)
			m.base, m.cloner = c.base, c.cloner
			ws := NewWorkers(WorkersConfig{Open: m.open, IdleTimeout: time.Hour, Cloner: "/cloner", Log: slog.New(slog.NewTextHandler(log, nil))})
			t.Cleanup(ws.Close)
			l := take(t, ws, untrusted("p"))
			defer l.Close(t.Context())
			cloned := c.base == nil && c.cloner.Success()
			last := m.opened[len(m.opened)-1]
			if len(m.opened) != c.specs || (last.Base != nil) != cloned || last.State != "" || l.w.cloned != cloned {
				t.Errorf("opened %+v", m.opened)
			}
			if cloned && (last.Base.State != workerID(trusted("p")) || last.Programs[clonerPath] != "/cloner") {
				t.Errorf("the clone's %+v", last)
			}
			if warns := strings.Contains(log.String(), "starts empty"); warns != c.warns {
				t.Error(log)
			}
		})
	}
}

// TestOutdatedClones tells when a worker of an untrusted scope is replaced.
func TestOutdatedClones(t *testing.T) {
	for name, c := range map[string]struct {
		base         error
		age          time.Duration
		built, lease bool // in the trusted scope since; the worker is in use
		want         bool
	}{
		"old":                   {age: 1, built: true, want: true},
		"old and in use":        {age: 1, built: true, lease: true},
		"old and nothing new":   {age: 1},
		"young":                 {age: time.Hour, built: true},
		"made of nothing":       {base: sandbox.ErrNoState, age: time.Hour, built: true, want: true},
		"nothing to make it of": {base: sandbox.ErrNoState, age: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.base = c.base
			ws := NewWorkers(WorkersConfig{Open: m.open, IdleTimeout: time.Hour, CloneAge: c.age})
			t.Cleanup(ws.Close)
			first := take(t, ws, untrusted("p"))
			if !c.lease {
				_ = first.Close(t.Context())
			}
			if c.built {
				_ = take(t, ws, trusted("p")).Close(t.Context())
			}
			if l := take(t, ws, untrusted("p")); (l.Client != first.Client) != c.want {
				t.Errorf("replaced: %t", l.Client != first.Client)
			}
		})
	}
}

// TestTidy fills the workers' disks.
func TestTidy(t *testing.T) {
	m := newMachine(t)
	ws := NewWorkers(WorkersConfig{Open: m.open, IdleTimeout: time.Hour, KeepBytes: 1000})
	t.Cleanup(ws.Close)
	fill := func() { m.set(func() { m.used, m.prunes = 1001, nil }) }
	prunes := func() (n int) { m.set(func() { n = len(m.prunes) }); return n }

	clone := take(t, ws, untrusted("p"))
	fill()
	busy := take(t, ws, trusted("p"))
	if prunes() != 0 {
		t.Error("what a busy clone stands on was removed")
	}
	_ = clone.Close(t.Context())
	again := take(t, ws, trusted("p"))
	if prunes() != 1 || m.prunes[0].MaxUsedSpace != 750 || !m.prunes[0].All {
		t.Errorf("pruned: %+v", m.prunes)
	}
	if _, there := ws.all[untrusted("p")]; there {
		t.Error("an idle clone was not ended first")
	}
	clone = take(t, ws, untrusted("p"))
	m.set(func() { m.used, m.prunes = 1126, nil })
	more := take(t, ws, trusted("p"))
	if prunes() != 1 || !clone.Died() {
		t.Error("a busy clone keeps a disk from being emptied that is nearly full")
	}
	_, _, _, _ = busy.Close(t.Context()), again.Close(t.Context()), more.Close(t.Context()), clone.Close(t.Context())

	clone = take(t, ws, untrusted("p"))
	fill()
	if shared := take(t, ws, untrusted("p")); shared.Client != clone.Client {
		t.Error("a full clone was replaced while it was in use")
	} else {
		_ = shared.Close(t.Context())
	}
	_ = clone.Close(t.Context())
	if next := take(t, ws, untrusted("p")); next.Client == clone.Client || prunes() != 0 {
		t.Error("a full clone was not replaced")
	}
}

func TestRenew(t *testing.T) {
	m := newMachine(t)
	ws := m.workers(time.Hour)
	l := take(t, ws, trusted("p"))
	if l.Died() {
		t.Error("a worker that lives has died")
	}
	first := l.Client
	close(l.Sandbox.(*fake).crash)
	if !l.Died() {
		t.Error("a worker that has died lives")
	}
	if err := l.Renew(t.Context()); err != nil || l.Client == first || l.Died() {
		t.Errorf("renewed: %v", err)
	}
	_ = l.Close(t.Context())
	eventually(t, "no lease is left", func() bool { ws.mu.Lock(); defer ws.mu.Unlock(); return ws.all[trusted("p")].leases == 0 })
	l = take(t, ws, trusted("p"))
	ws.Close()
	if l.Died() {
		t.Error("a worker that was ended has died")
	}
	if _, err := ws.Lease(t.Context(), scope.Scope{}); err == nil {
		t.Error("nobody has a worker")
	}
}
