package gitlab

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// TestConcurrent numbers the jobs that run at the same time.
func TestConcurrent(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		var mu sync.Mutex
		var got []string
		w.run = func(ctx context.Context, a Assigned, _ runner.Output) (sandbox.Exit, error) {
			mu.Lock()
			got = append(got, fmt.Sprintf("%s %d %d", a.Job.JobInfo.ProjectFullPath, a.ConcurrentID, a.ConcurrentProjectID))
			mu.Unlock()
			if a.CorrelationID == "" {
				t.Error("it is not known which request brought the job")
			}
			return sandbox.Exit{}, sleep(ctx, 10*time.Second)
		}
		for _, project := range []string{"g/a", "g/b", "g/a"} {
			w.fake.offer(func(j *spec.Job) { j.JobInfo.ProjectFullPath = project })
		}
		w.start()
		time.Sleep(20 * time.Second)
		w.over(w.fake.offer(func(j *spec.Job) { j.JobInfo.ProjectFullPath = "g/a" }), 20*time.Second)
		slices.Sort(got)
		if want := []string{"g/a 0 0", "g/a 0 0", "g/a 2 1", "g/b 1 0"}; !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
	})
}
