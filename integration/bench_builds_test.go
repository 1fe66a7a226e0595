//go:build integration && bench

package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/client"
)

func (d *daemon) client() *client.Client {
	return client.New(filepath.Join(d.state, "run/runnerd.sock"))
}

func (d *daemon) command(args ...string) *exec.Cmd {
	return exec.Command(d.bin, append(d.flags, args...)...)
}

var errFirstByte = errors.New("the first byte is here")

// firstLine submits a job over the API and returns how long it took until its first byte of output was here.
func (d *daemon) firstLine() time.Duration {
	d.t.Helper()
	c := d.client()
	defer c.Close()
	ctx := d.t.Context()
	began := time.Now()
	job, err := c.Submit(ctx, api.Submission{Image: debian, Script: api.Script{Command: []string{"/bin/echo", "hello"}}})
	if err != nil {
		d.t.Fatal(err)
	}
	err = c.Log(ctx, job.ID, true, func(f api.Frame) error {
		if len(f.Data) > 0 {
			return errFirstByte
		}
		return nil
	})
	took := time.Since(began)
	if !errors.Is(err, errFirstByte) {
		d.t.Fatal("no output: ", err)
	}
	if job, err = c.Wait(ctx, job.ID); err != nil || job.Result.Outcome != runner.Succeeded {
		d.t.Fatal(job, err)
	}
	return took
}

// buildOnce builds a context that is given as files, over the API.
func buildOnce(ctx context.Context, c *client.Client, files map[string]string) error {
	var context bytes.Buffer
	w := tar.NewWriter(&context)
	for name, text := range files {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}), writeAll(w, text)); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	ws, err := c.Upload(ctx, &context)
	if err != nil {
		return err
	}
	accepted, err := c.Build(ctx, api.Build{Workspace: ws.ID})
	if err != nil {
		return err
	}
	for _, j := range accepted.Jobs {
		done, err := c.Wait(ctx, j.ID)
		if err != nil {
			return err
		}
		if done.Result.Outcome != runner.Succeeded {
			return fmt.Errorf("%s: %s", done.Result.Outcome, done.Result.Message)
		}
	}
	return nil
}

func writeAll(w *tar.Writer, text string) error {
	_, err := w.Write([]byte(text))
	return err
}

func benchBuilds(t *testing.T) {
	d := startDaemon(t, "builder: {idle: 10m}\n")
	registry := fmt.Sprintf("127.0.0.1:%d", host.port)
	b, _ := startBuildkitd(t, registry)
	t.Cleanup(b.stop)

	cached := files(t, "Dockerfile", "FROM debian:bookworm-slim\nCOPY a /a\nRUN echo one >/one\nCOPY b /b\nRUN echo two >/two\nCOPY c /c\n",
		"a", "a", "b", "b", "c", "c")
	ours := func() time.Duration { return timed(t, d.command("build", "--progress", "quiet", cached)) }
	peer := func() time.Duration { return timed(t, b.buildctl(cached)) }
	ours()
	peer()
	compare(t, "build, all cached: runnerd build / buildctl build", pairs, ours, peer, 0.5)

	for _, c := range []struct {
		concurrency, builds int
		goal                float64
	}{{1, 4, 0}, {8, 16, 0.5}, {32, 32, 0}} {
		ours := func() time.Duration {
			api := d.client()
			defer api.Close()
			return inParallel(t, c.concurrency, c.builds, func() error {
				return buildOnce(t.Context(), api, trivialBuild("ours"))
			})
		}
		peer := func() time.Duration {
			return inParallel(t, c.concurrency, c.builds, func() error {
				dir, err := os.MkdirTemp(b.dir, "context-")
				if err != nil {
					return err
				}
				defer os.RemoveAll(dir)
				for name, text := range trivialBuild("peer") {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
						return err
					}
				}
				if out, err := b.buildctl(dir).CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
		}
		times := compare(t, fmt.Sprintf("%d trivial builds, %d at once / buildctl", c.builds, c.concurrency), pairs, ours, peer, c.goal)
		absolute(fmt.Sprintf("  builds a second, %d at once", c.concurrency), fmt.Sprintf("%.1f /s", float64(c.builds)/measure.Median(times).Seconds()), "", false)
	}
}

var trivialBuilds atomic.Int64

// trivialBuild is a build that nobody has built before.
func trivialBuild(who string) map[string]string {
	id := fmt.Sprintf("%s-%d", who, trivialBuilds.Add(1))
	return map[string]string{
		"Dockerfile": "FROM debian:bookworm-slim\nCOPY a /a\nCOPY b /b\nRUN echo " + id + " >/c\n",
		"a":          "a " + id, "b": "b " + id,
	}
}

// inParallel calls do n times, so many at once, and returns how long that took.
func inParallel(t *testing.T, concurrency, n int, do func() error) time.Duration {
	t.Helper()
	began := time.Now()
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	var all sync.WaitGroup
	for range concurrency {
		all.Go(func() {
			for range work {
				if err := do(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	return time.Since(began)
}
