package queue

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/runner"
)

// TestKilled kills a process in the middle of its work, again and again, and looks at what the next one
// finds: every job that was accepted is there, and none is begun twice.
func TestKilled(t *testing.T) {
	const env = "QUEUE_TEST_STATE"
	if dir := os.Getenv(env); dir != "" {
		victim(t, dir, os.Getenv(env+"_ROUND"))
		return
	}
	dir := t.TempDir()
	accepted, begun := map[string]bool{}, map[string]int{}
	for round := range 4 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), env+"="+dir, fmt.Sprint(env, "_ROUND=", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			what, id, _ := strings.Cut(lines.Text(), " ")
			switch what {
			case "accepted":
				accepted[id] = true
			case "begins":
				begun[id]++
			}
			if n == 60+41*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the process was not killed")
		}
	}
	q := open(t, config(t, dir))
	for id := range accepted {
		i := get(t, q, id)
		switch {
		case begun[id] > 1:
			t.Errorf("job %s was begun %d times", id, begun[id])
		case begun[id] == 1 && i.State != runner.Finished:
			t.Errorf("job %s was begun and is %s", id, i.State)
		case i.State == runner.Finished && i.Result.Outcome != runner.Succeeded && i.Result.Reason != ReasonInterrupted:
			t.Errorf("job %s: %+v", id, i.Result)
		}
	}
	t.Logf("%d jobs accepted, %d begun, %d interrupted by the last kill", len(accepted), len(begun), len(q.Interrupted()))
	if len(q.Interrupted()) == 0 {
		t.Error("the test did not interrupt anything")
	}
}

// victim submits jobs and runs them until it is killed. Each line that it prints is about what is already
// in the journal.
func victim(t *testing.T, dir, round string) {
	q, err := Open(t.Context(), config(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for i := 0; ; i++ {
			ids := []string{fmt.Sprintf("job-%s-%d-a", round, i), fmt.Sprintf("job-%s-%d-b", round, i), fmt.Sprintf("job-%s-%d-c", round, i)}
			submit(t, q, ids...)
			for _, id := range ids {
				fmt.Println("accepted", id)
			}
			if i%3 == 2 {
				_, _ = q.Wait(t.Context(), ids[0])
			}
		}
	}()
	for {
		a := next(t, q)
		go func() {
			ctx := context.WithoutCancel(t.Context())
			a.State(ctx, runner.Waiting, "for its turn")
			a.State(ctx, runner.Opening, "")
			fmt.Println("begins", a.ID)
			a.State(ctx, runner.Running, "")
			_, _ = a.Stream(runner.Stdout).Write([]byte("hello"))
			if strings.HasSuffix(a.ID, "2-b") {
				return // it runs for ever
			}
			a.State(ctx, runner.Closing, "")
			if err := a.Finish(ctx, runner.Result{Outcome: runner.Succeeded}); err != nil {
				t.Error(err)
			}
		}()
	}
}
