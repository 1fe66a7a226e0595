package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
	"github.com/runnerd/runnerd/runner/api/client"
)

func put(t *testing.T, o *api.Outputs, job, name, text string) error {
	t.Helper()
	w, err := o.Create(job, name)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, text)
	return errors.Join(err, w.Close())
}

func TestOutputs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outputs")
	store, err := api.NewOutputs(dir, 100, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	s := apitest.Start(t, func(c *api.Config, b *apitest.Backend) {
		c.Outputs = store
		b.Run = func(_ context.Context, r runner.Request, _ []string, _ func(runner.Stream, string)) runner.Result {
			<-release
			if err := put(t, store, r.ID, "a.tar", "text"); err != nil {
				t.Error(err)
			}
			detail, _ := json.Marshal(map[string]any{"outputs": []api.Output{{Name: "a.tar", Type: "oci", Dest: "x", Size: 4}, {Name: "gone.tar"}, {Name: "../../etc/passwd"}}})
			return runner.Result{Outcome: runner.Succeeded, Detail: detail}
		}
	})
	c, ctx := client.New(s.Socket), t.Context()
	job, err := c.Submit(ctx, script("true"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Outputs(ctx, job.ID)
	status(t, err, 409, "not finished")
	status(t, c.RemoveOutputs(ctx, job.ID), 409, "not finished")
	close(release)
	if _, err := c.Wait(ctx, job.ID); err != nil {
		t.Fatal(err)
	}
	all, err := c.Outputs(ctx, job.ID)
	if err != nil || len(all) != 1 || all[0] != (api.Output{Name: "a.tar", Type: "oci", Dest: "x", Size: 4}) {
		t.Fatal(all, err)
	}
	r, err := c.Output(ctx, job.ID, "a.tar")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(r); string(text) != "text" {
		t.Error(text, err)
	}
	_ = r.Close()
	for _, name := range []string{"gone.tar", "passwd", "..%2f..%2fetc%2fpasswd"} {
		_, err = c.Output(ctx, job.ID, name)
		status(t, err, 404, "no such output")
	}
	if err := c.RemoveOutputs(ctx, job.ID); err != nil {
		t.Error(err)
	}
	_, err = c.Output(ctx, job.ID, "a.tar")
	status(t, err, 404, "no such output")
	_, err = c.Outputs(ctx, "nope")
	status(t, err, 404, "no such job")
}

func TestOutputsAreBounded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outputs")
	store, err := api.NewOutputs(dir, 100, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := put(t, store, "one", "a", strings.Repeat("x", 60)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // and what an earlier process has left counts
		if err := put(t, store, "two", "b", strings.Repeat("x", 41)); err == nil || !strings.Contains(err.Error(), "outputs.max_bytes") {
			t.Error(err)
		}
		if err := store.Remove("two"); err != nil {
			t.Error(err)
		}
		if store, err = api.NewOutputs(dir, 100, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Remove("one"); err != nil {
		t.Error(err)
	}
	if err := put(t, store, "two", "b", strings.Repeat("x", 100)); err != nil {
		t.Error(err)
	}
	for _, names := range [][2]string{{"..", "a"}, {"one", "../a"}, {"one", ""}, {"", "a"}, {"a/b", "c"}} {
		if err := put(t, store, names[0], names[1], ""); err == nil {
			t.Errorf("%v was made", names)
		}
	}
}

// TestOutputsExpire holds that outputs that nobody fetches do not stay.
func TestOutputsExpire(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outputs")
	store, err := api.NewOutputs(dir, 100, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	s := apitest.Start(t, func(c *api.Config, _ *apitest.Backend) { c.Outputs = store })
	left := func() int { entries, _ := os.ReadDir(dir); return len(entries) }
	if err := put(t, store, "unknown", "a", "text"); err != nil {
		t.Fatal(err)
	}
	if err := s.Recover(t.Context()); err != nil || left() != 0 {
		t.Error(left(), err)
	}
	if err := put(t, store, "running", "a", "text"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); left() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("they stay")
		}
	}
}
