package runner

import (
	"context"
	"testing"

	"github.com/runnerd/runnerd/sandbox"
)

// refusing is a Reporter that learns, when it is told that the job begins, that nobody wants it.
type refusing struct {
	Reporter
	cancel chan struct{}
}

func (r refusing) State(ctx context.Context, s State, detail string) {
	if s == Opening {
		close(r.cancel)
	}
	r.Reporter.State(ctx, s, detail)
}

// TestNothingBeginsThatNobodyWants cancels a job in the last moment before its sandbox is made.
func TestNothingBeginsThatNobodyWants(t *testing.T) {
	for range 100 {
		b := newBench(t, exits(0))
		b.config.Open = func(context.Context, Job) (sandbox.Sandbox, error) {
			t.Error("a sandbox is opened")
			return b.sb, nil
		}
		src := newSource(1)
		src.c <- Assignment{Job: b.job, Reporter: refusing{b.rep, b.cancel}, Cancel: b.cancel}
		close(src.c)
		r, err := New(b.config)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Run(t.Context(), src); err != nil {
			t.Fatal(err)
		}
		if res := b.rep.result; res == nil || res.Outcome != Cancelled {
			t.Fatalf("%+v", res)
		}
	}
}

// TestEnd lets the source say how a job ended.
func TestEnd(t *testing.T) {
	for _, text := range []string{"", "ended with a secret: hunter22"} {
		b := newBench(t, exits(1))
		b.job.Secrets = []string{"hunter22"}
		src := newSource(1)
		src.c <- Assignment{Job: b.job, Reporter: b.rep, Cancel: b.cancel, End: func(r Result) string {
			if r.Outcome != Failed || r.ExitCode != 1 || r.Err == nil {
				t.Errorf("%+v", r)
			}
			return text
		}}
		close(src.c)
		r, err := New(b.config)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Run(t.Context(), src); err != nil {
			t.Fatal(err)
		}
		want := ""
		if text != "" {
			want = "ended with a secret: [MASKED]\n"
		}
		if got := b.rep.said(Notice); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}
