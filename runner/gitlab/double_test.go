package gitlab

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/integration/gitlabtest"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// TestDouble runs jobs against the double of GitLab, which notes every breach of the protocol, while things go wrong.
func TestDouble(t *testing.T) {
	type faults = []gitlabtest.Fault
	minutes := func(n int) gitlabtest.Duration { return gitlabtest.Duration(time.Duration(n) * time.Minute) }
	seconds := func(n int) gitlabtest.Duration { return gitlabtest.Duration(time.Duration(n) * time.Second) }
	for name, c := range map[string]struct {
		o      gitlabtest.Options
		faults faults
	}{
		"nothing":                       {},
		"one phase":                     {o: gitlabtest.Options{OnePhase: true}},
		"no long polls":                 {o: gitlabtest.Options{LongPoll: -1}},
		"unwatched":                     {o: gitlabtest.Options{UpdateInterval: time.Minute}},
		"the end is stored slowly":      {o: gitlabtest.Options{FinalPolls: 3}},
		"5xx storms":                    {faults: faults{{Status: 502, Probability: 0.5}}},
		"dropped connections":           {faults: faults{{Drop: gitlabtest.Before, Probability: 0.3}}},
		"lost answers":                  {faults: faults{{Drop: gitlabtest.After, Probability: 0.3}}},
		"an outage of 15 minutes":       {faults: faults{{Drop: gitlabtest.Before, After: seconds(20), For: minutes(15)}}},
		"an outage with 503":            {faults: faults{{Status: 503, RetryAfter: seconds(7), After: seconds(20), For: minutes(15)}}},
		"lost answer that gives a job":  {faults: faults{{On: gitlabtest.Request, Drop: gitlabtest.After, Count: 3}}},
		"429 for requests":              {faults: faults{{On: gitlabtest.Request, Status: 429, ResetTime: seconds(30), RetryAfter: seconds(1), Count: 2}}},
		"429 for traces":                {faults: faults{{On: gitlabtest.PatchTrace, Status: 429, RetryAfter: seconds(10), Count: 3}}},
		"409 for requests":              {faults: faults{{On: gitlabtest.Request, Status: 409, Count: 5}}},
		"the log is lost while it runs": {faults: faults{{On: gitlabtest.PatchTrace, Skip: 3, Count: 1, Lose: true}}},
		"the log is lost at the end":    {faults: faults{{On: gitlabtest.UpdateJob, State: "success", Count: 1, Lose: true}}},
		"409 for traces":                {faults: faults{{On: gitlabtest.PatchTrace, Status: 409, Probability: 0.3}}},
		"412 again and again":           {faults: faults{{On: gitlabtest.UpdateJob, State: "success", Count: 4, Status: 412, Lose: true}}},
		"all of it":                     {faults: faults{{Status: 500, Probability: 0.1}, {Drop: gitlabtest.Before, Probability: 0.1}, {Drop: gitlabtest.After, Probability: 0.1}, {On: gitlabtest.PatchTrace, Probability: 0.05, Lose: true}}},
		"slow":                          {faults: faults{{Delay: seconds(2)}}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) { double(t, dir, c.o, c.faults) })
		})
	}
}

func double(t *testing.T, dir string, o gitlabtest.Options, faults []gitlabtest.Fault) {
	o.URL, o.Dir = "http://gitlab.test", dir+"/server"
	switch {
	case o.LongPoll == 0:
		o.LongPoll = 50 * time.Second
	case o.LongPoll < 0:
		o.LongPoll = 0
	}
	s, err := gitlabtest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	w := newWorld(t, dir)
	rs := w.config.Runners.(*Registrations)
	if err := rs.Remove("r"); err != nil {
		t.Fatal(err)
	}
	if err := rs.Add(Registration{Name: "r", URL: s.URL, Token: s.AddRunner(), Limits: sandbox.Limits{CPU: 1000}}); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: s.Dial}
	defer transport.CloseIdleConnections()
	w.config.Client = func(r Registration) (*Client, error) {
		return NewClient(r.URL, ClientOptions{Transport: transport, Info: spec.Info{
			Name: "runnerd", Version: "0", Platform: "linux", Architecture: "amd64", Executor: r.Executor, Features: Features(false),
		}})
	}
	var mu sync.Mutex
	wrote := map[int64]string{}
	w.run = func(ctx context.Context, a Assigned, out runner.Output) (sandbox.Exit, error) {
		sum := sha256.New()
		for i := range 60 {
			_, _ = fmt.Fprintf(io.MultiWriter(sum, out.Stream(runner.Stdout)), "job %d line %d\n", a.Job.ID, i)
			if i%10 == 0 {
				_, _ = io.WriteString(io.MultiWriter(sum, out.Stream(runner.Stdout)), strings.Repeat("0123456789abcde\n", 4<<10))
			}
			if err := sleep(ctx, time.Second); err != nil {
				return sandbox.Exit{}, err
			}
		}
		mu.Lock()
		wrote[a.Job.ID] = fmt.Sprintf("%x", sum.Sum(nil))
		mu.Unlock()
		return sandbox.Exit{}, nil
	}
	var ids []int64
	for range 10 {
		ids = append(ids, s.Offer(spec.Job{Steps: []spec.Step{{Name: spec.StepScript, Script: []string{"true"}}}}).ID)
	}
	if err := s.Faults(gitlabtest.Plan{Seed: 1, Faults: faults}); err != nil {
		t.Fatal(err)
	}
	w.start()
	defer w.end()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
	defer cancel()
	for _, id := range ids {
		j, err := s.Wait(ctx, id)
		if err != nil {
			t.Fatalf("job %d: %+v %v\n%s", id, j, err, w.log.String())
		}
		lost := o.OnePhase && w.runs(id) == 0
		if j.Status != gitlabtest.Success && !lost || w.runs(id) != 1 {
			t.Errorf("job %d: %+v, ran %d times", id, j, w.runs(id))
		}
		trace, err := s.Trace(id)
		if err != nil {
			t.Fatal(err)
		}
		text, _, _ := strings.Cut(string(trace), "\x1b")
		if sum := fmt.Sprintf("%x", sha256.Sum256([]byte(text))); sum != wrote[id] {
			t.Errorf("job %d: the log is not what the job wrote: %d bytes", id, len(trace))
		}
	}
	for i, v := range s.Violations() {
		if i < 5 {
			t.Errorf("violation: %s", v)
		}
	}
}

// TestDoubleArtifacts uploads and downloads by all the ways that a GitLab may want.
func TestDoubleArtifacts(t *testing.T) {
	for _, to := range []gitlabtest.Redirect{gitlabtest.Direct, gitlabtest.Objects, gitlabtest.Node} {
		for name, faults := range map[string][]gitlabtest.Fault{
			"as it should be": nil, "503s": {{On: gitlabtest.Upload, Status: 503, Count: 3}, {On: gitlabtest.Download, Status: 503, Count: 3}},
		} {
			t.Run(string(to)+" "+name, func(t *testing.T) {
				doubleArtifacts(t, t.TempDir(), to, faults)
			})
		}
	}
}

func doubleArtifacts(t *testing.T, dir string, to gitlabtest.Redirect, faults []gitlabtest.Fault) {
	s, err := gitlabtest.New(gitlabtest.Options{URL: "http://gitlab.test", Dir: dir, Uploads: to, Downloads: to})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	transport := &http.Transport{DialContext: s.Dial}
	defer transport.CloseIdleConnections()
	c, err := NewClient(s.URL, ClientOptions{Transport: transport, Info: spec.Info{
		Name: "runnerd", Version: "0", Platform: "linux", Architecture: "amd64", Features: Features(false),
	}})
	if err != nil {
		t.Fatal(err)
	}
	token := s.AddRunner()
	if _, err := s.Run(t.Context(), gitlabtest.RunOptions{Pipeline: &ciyaml.Pipeline{Stages: []string{"build", "test"}, Jobs: []*ciyaml.Job{
		{Name: "build", Stage: "build", When: "on_success", Artifacts: []spec.Artifact{{Type: "archive", Format: "zip", ExpireIn: "1 day"}}},
		{Name: "test", Stage: "test", When: "on_success", Dependencies: []string{"build"}},
	}}}); err != nil {
		t.Fatal(err)
	}
	take := func() spec.Job {
		given, err := c.RequestJob(t.Context(), spec.JobRequest{Token: token, SystemID: "s_0123456789ab"})
		if err != nil || given.Job == nil {
			t.Fatal(given, err)
		}
		if _, err := c.UpdateJob(t.Context(), given.Job.ID, spec.Update{Token: given.Job.Token, State: spec.Running}); err != nil {
			t.Fatal(err)
		}
		return *given.Job
	}
	j := take()
	if err := s.Faults(gitlabtest.Plan{Faults: faults}); err != nil {
		t.Fatal(err)
	}
	data := "PK\x05\x06" + strings.Repeat("\x00", 18) // an empty zip
	o := ArtifactOptions{Type: "archive", Format: "zip", ExpireIn: "1 day", Name: "x.zip"}
	if err := c.UploadArtifact(t.Context(), j, o, func(w io.Writer) error { _, err := io.WriteString(w, data); return err }); err != nil {
		t.Error(err)
	}
	if _, err := c.UpdateJob(t.Context(), j.ID, spec.Update{Token: j.Token, State: spec.Success}); err != nil {
		t.Fatal(err)
	}
	j = take()
	if len(j.Dependencies) != 1 {
		t.Fatalf("%+v", j.Dependencies)
	}
	var got strings.Builder
	if err := c.DownloadArtifact(t.Context(), j.Dependencies[0], &got); err != nil || got.String() != data {
		t.Errorf("%q %v", got.String(), err)
	}
	for _, v := range s.Violations() {
		t.Error(v)
	}
}
