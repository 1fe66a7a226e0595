package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
	"github.com/runnerd/runnerd/runner/api/client"
	"github.com/runnerd/runnerd/scope"
)

// shelf has one artifact, of the jobs of one scope.
type shelf struct{ owner scope.Scope }

func (s shelf) List(_ context.Context, owner scope.Scope, _ string) ([]api.Output, error) {
	if owner != s.owner {
		return nil, nil
	}
	return []api.Output{{Name: "dist.tar", Type: "local", Size: 4, Expires: time.Unix(4e9, 0).UTC()}}, nil
}

func (s shelf) Open(_ context.Context, owner scope.Scope, job, name string) (io.ReadCloser, error) {
	if owner != s.owner || name != "dist.tar" {
		return nil, fmt.Errorf("%s of %s: %w", name, job, api.ErrNoOutput)
	}
	return io.NopCloser(strings.NewReader("text")), nil
}

func TestArtifacts(t *testing.T) {
	mine, err := scope.Of(scope.Origin{Project: "mine", Protected: true})
	if err != nil {
		t.Fatal(err)
	}
	s := apitest.Start(t, func(c *api.Config, b *apitest.Backend) {
		c.Artifacts = shelf{mine}
		b.Run = func(context.Context, runner.Request, []string, func(runner.Stream, string)) runner.Result {
			return runner.Result{Outcome: runner.Failed}
		}
	})
	c, ctx := client.New(s.Socket), t.Context()
	for project, want := range map[string]int{"mine": 1, "theirs": 0} {
		sub := script("true")
		sub.Project = project
		job, err := c.Submit(ctx, sub)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Wait(ctx, job.ID); err != nil {
			t.Fatal(err)
		}
		for range 2 { // removing outputs leaves artifacts
			all, err := c.Outputs(ctx, job.ID)
			if err != nil || len(all) != want {
				t.Errorf("%s: %v, %v", project, all, err)
			}
			if err := c.RemoveOutputs(ctx, job.ID); err != nil {
				t.Error(err)
			}
		}
		r, err := c.Output(ctx, job.ID, "dist.tar")
		if want == 0 {
			status(t, err, 404, "no such output")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(r); string(text) != "text" {
			t.Error(text, err)
		}
		_ = r.Close()
	}
}

func TestKept(t *testing.T) {
	payload := make(chan json.RawMessage, 1)
	s := apitest.Start(t, func(_ *api.Config, b *apitest.Backend) {
		b.Run = func(_ context.Context, r runner.Request, _ []string, _ func(runner.Stream, string)) runner.Result {
			payload <- r.Payload
			return runner.Result{Outcome: runner.Succeeded}
		}
	})
	c, ctx := client.New(s.Socket), t.Context()
	sub := script("true")
	sub.Kept = api.Kept{Caches: []api.Cache{{Key: "k", Paths: []string{"p"}}}, Artifacts: []api.Artifact{{Paths: []string{"a"}}, {Paths: []string{"b"}}}}
	if _, err := c.Submit(ctx, sub); err != nil {
		t.Fatal(err)
	}
	var got struct {
		api.Script
		api.Kept
	}
	if err := json.Unmarshal(<-payload, &got); err != nil || got.Command[0] != "true" || got.Caches[0].Key != "k" || got.Artifacts[0].Name != "artifacts.tar" || got.Artifacts[1].Name != "artifacts-2.tar" {
		t.Errorf("%+v, %v", got, err)
	}
	for name, k := range map[string]api.Kept{
		"no key":       {Caches: []api.Cache{{Paths: []string{"p"}}}},
		"long key":     {Caches: []api.Cache{{Key: strings.Repeat("k", 10<<10), Paths: []string{"p"}}}},
		"no path":      {Caches: []api.Cache{{Key: "k"}}},
		"empty path":   {Caches: []api.Cache{{Key: "k", Paths: []string{""}}}},
		"NUL":          {Caches: []api.Cache{{Key: "k", Paths: []string{"a\x00"}}}},
		"policy":       {Caches: []api.Cache{{Key: "k", Paths: []string{"p"}, Policy: "both"}}},
		"when":         {Artifacts: []api.Artifact{{Paths: []string{"p"}, When: "never"}}},
		"name":         {Artifacts: []api.Artifact{{Paths: []string{"p"}, Name: "../x"}}},
		"hidden":       {Artifacts: []api.Artifact{{Paths: []string{"p"}, Name: ".x"}}},
		"twice":        {Artifacts: []api.Artifact{{Paths: []string{"p"}, Name: "x"}, {Paths: []string{"p"}, Name: "x"}}},
		"before it":    {Artifacts: []api.Artifact{{Paths: []string{"p"}, Keep: -1}}},
		"nothing kept": {Artifacts: []api.Artifact{{}}},
	} {
		sub.Kept = k
		if _, err := c.Submit(ctx, sub); err == nil {
			t.Errorf("%s: it was accepted", name)
			<-payload
		} else {
			status(t, err, 422, "")
		}
	}
}
