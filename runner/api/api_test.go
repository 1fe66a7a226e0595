package api_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
	"github.com/runnerd/runnerd/runner/api/client"
	"github.com/runnerd/runnerd/sandbox"
)

func script(args ...string) api.Submission { return api.Submission{Script: api.Script{Command: args}} }

func status(t *testing.T, err error, want int, text string) {
	t.Helper()
	var p *client.Problem
	if !errors.As(err, &p) || p.Status != want || !strings.Contains(err.Error(), text) {
		t.Errorf("want a problem %d with %q, got %v", want, text, err)
	}
}

func TestJobLifeAndLog(t *testing.T) {
	release := make(chan struct{})
	s := apitest.Start(t, func(_ *api.Config, b *apitest.Backend) {
		b.Run = func(_ context.Context, r runner.Request, secrets []string, log func(runner.Stream, string)) runner.Result {
			log(runner.Notice, "hello\n")
			log(runner.Stdout, "out\n")
			<-release
			log(runner.Stderr, "err\n")
			log(runner.Progress, `{"vertexes":[{"digest":"a","name":"RUN x","started":"2026-01-01T00:00:00Z"}],"logs":[{"data":"aGkK"}]}`)
			if len(secrets) != 1 || secrets[0] != "hunter2" || !strings.Contains(string(r.Payload), "echo") {
				t.Errorf("%+v, %v", r, secrets)
			}
			return runner.Result{Outcome: runner.Failed, ExitCode: 3, Detail: json.RawMessage(`{"digest":"sha256:0"}`)}
		}
	})
	c := client.New(s.Socket)
	ctx := t.Context()
	sub := script("echo", "a")
	sub.Secrets, sub.Limits.CPU, sub.Timeout = []string{"hunter2"}, 500, runner.Duration(time.Minute)
	job, err := c.Submit(ctx, sub)
	if err != nil || job.Name != "echo a" || job.Sandbox.String() != "container" || job.Limits.CPU != 500 {
		t.Fatal(job, err)
	}
	if active, err := c.Jobs(ctx, api.Filter{Active: true}); err != nil || len(active) != 1 {
		t.Error(active, err)
	}
	var got []string
	err = c.Log(ctx, job.ID, true, func(f api.Frame) error {
		got = append(got, fmt.Sprintf("%d %s", f.Type, f.Data))
		if len(got) == 2 { // it has arrived although the job goes on
			close(release)
		}
		return nil
	})
	if err != nil || len(got) != 4 || got[2] != "2 err\n" {
		t.Error(got, err)
	}
	job, err = c.Wait(ctx, job.ID)
	if err != nil || job.Result == nil || job.Result.ExitCode != 3 || string(job.Result.Detail) != `{"digest":"sha256:0"}` {
		t.Error(job, err)
	}
	if text := get(t, s.Socket, "/v1/jobs/"+job.ID+"/log", "text/plain"); text != "runnerd: hello\nout\nerr\n=> RUN x\nhi\n" {
		t.Errorf("%q", text)
	}
	if _, err := c.Cancel(ctx, job.ID, ""); err == nil {
		t.Error("a finished job was cancelled")
	}
	if id, err := c.Resolve(ctx, job.ID[:4]); err != nil || id != job.ID {
		t.Error(id, err)
	}
	if failed, err := c.Jobs(ctx, api.Filter{Outcome: "succeeded"}); err != nil || len(failed) != 0 {
		t.Error(failed, err)
	}
	if h, err := c.Health(ctx); err != nil || h.Status != "ok" {
		t.Error(h, err)
	}
	if v, err := c.Version(ctx); err != nil || v.API != api.Version || v.Version != "test" {
		t.Error(v, err)
	}
}

func httpClient(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
}

func get(t *testing.T, socket, path, accept string) string {
	t.Helper()
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x"+path, nil)
	r.Header.Set("Accept", accept)
	h := httpClient(socket)
	defer h.CloseIdleConnections()
	res, err := h.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRefusals(t *testing.T) {
	s := apitest.Start(t, func(c *api.Config, _ *apitest.Backend) {
		c.Prepare = func(r *runner.Request) error { return sandbox.DefaultPolicy().Allow(r.Nesting) }
	})
	c := client.New(s.Socket)
	deep := script("true")
	deep.Sandbox = sandbox.Nesting{sandbox.Container, sandbox.DinD, sandbox.Container}
	_, err := c.Submit(t.Context(), deep)
	status(t, err, 403, "3 layers deep")
	tty := script("sh")
	tty.Script.TTY = true
	_, err = c.Submit(t.Context(), tty)
	status(t, err, 422, "attach")
	env := script("sh")
	env.Env = []string{"novalue"}
	_, err = c.Submit(t.Context(), env)
	status(t, err, 422, "KEY=value")
	_, err = c.Submit(t.Context(), script())
	status(t, err, 422, "script.command")
	_, err = c.Job(t.Context(), "nope")
	status(t, err, 404, "no such job")
	_, err = c.Jobs(t.Context(), api.Filter{State: "bored"})
	status(t, err, 422, "state")
	_, err = c.Attach(t.Context(), "nope", client.Terminal{})
	status(t, err, 404, "no such job")
	_, err = c.Build(t.Context(), api.Build{Workspace: "x"})
	status(t, err, 501, "no builder")
	_, err = c.Resolve(t.Context(), "zz")
	status(t, err, 404, "runnerd jobs")
	err = c.Log(t.Context(), "nope", true, nil)
	status(t, err, 404, "no such job")

	h := httpClient(s.Socket)
	defer h.CloseIdleConnections()
	for _, x := range []struct {
		method, path, kind, body string
		status                   int
	}{
		{"POST", "/v1/jobs", "application/json", `{"script":{"command":["x"]},"typo":1}`, 422},
		{"POST", "/v1/jobs", "application/json", `{"script":`, 400},
		{"POST", "/v1/jobs", "application/json", `{"sandbox":"container/moon","script":{"command":["x"]}}`, 422},
		{"POST", "/v1/jobs", "application/json", `{"script":{"command":["` + strings.Repeat("x", 5<<20) + `"]}}`, 413},
		{"POST", "/v1/workspaces", "text/plain", "", 415},
		{"POST", "/v1/jobs/../../x", "application/json", "{}", 404},
		{"GET", "/v1/jobs?colour=blue", "", "", 422},
		{"GET", "/v1/moon", "", "", 404},
		{"GET", "/v1/jobs/%2e%2e", "", "", 422},
	} {
		r, _ := http.NewRequestWithContext(t.Context(), x.method, "http://x"+x.path, strings.NewReader(x.body))
		r.Header.Set("Content-Type", x.kind)
		res, err := h.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != x.status || res.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(string(text), `"detail"`) {
			t.Errorf("%s %s: %s %s %.300s", x.method, x.path, res.Status, res.Header.Get("Content-Type"), text)
		}
	}
	s.Drain()
	_, err = c.Submit(t.Context(), script("true"))
	status(t, err, 503, "stopping")
	if _, err := client.New(s.Socket + "x").Health(t.Context()); !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), "runnerd serve") {
		t.Error(err)
	}
}

func TestOpenAPI(t *testing.T) {
	s := apitest.Start(t, nil)
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]any
	}
	if err := json.Unmarshal([]byte(get(t, s.Socket, "/openapi.json", "")), &doc); err != nil {
		t.Fatal(err)
	}
	n := 0
	for path, ops := range doc.Paths {
		n += len(ops)
		if !strings.HasPrefix(path, "/v1/") {
			t.Error(path)
		}
	}
	if n != 17 || doc.OpenAPI == "" {
		t.Errorf("%d operations", n)
	}
}

// echo is a job that sends its input back.
func echo(at **api.Attachments) func(context.Context, runner.Request, []string, func(runner.Stream, string)) runner.Result {
	return func(ctx context.Context, r runner.Request, _ []string, _ func(runner.Stream, string)) runner.Result {
		session, err := (*at).Session(ctx, r.ID)
		if err != nil {
			return runner.Result{Outcome: runner.Errored, Message: err.Error()}
		}
		defer func() { _ = session.Stdin().Close() }()
		if _, err := io.Copy(session.Stream(ctx, runner.Stdout), session.Stdin()); err != nil {
			return runner.Result{Outcome: runner.Errored, Message: err.Error()}
		}
		_, _ = io.WriteString(session.Stream(ctx, runner.Stderr), "done\n")
		_, _ = io.WriteString(session.Stream(ctx, runner.Notice), "cache k: saved\n")
		return runner.Result{Outcome: runner.Succeeded, ExitCode: 0}
	}
}

func attachable(t *testing.T, run func(at **api.Attachments) func(context.Context, runner.Request, []string, func(runner.Stream, string)) runner.Result) (*apitest.Server, *client.Client, string) {
	var at *api.Attachments
	s := apitest.Start(t, func(c *api.Config, b *apitest.Backend) { at, b.Run = c.Attachments, run(&at) })
	c := client.New(s.Socket)
	sub := script("cat")
	sub.Attach, sub.Script.Stdin = true, true
	job, err := c.Submit(t.Context(), sub)
	if err != nil {
		t.Fatal(err)
	}
	return s, c, job.ID
}

func TestAttachDuplex(t *testing.T) {
	const size = 100 << 20
	_, c, id := attachable(t, echo)
	seed := [32]byte{1}
	sent, got := sha256.New(), sha256.New()
	var stderr bytes.Buffer
	states, notices := 0, ""
	job, err := c.Attach(t.Context(), id, client.Terminal{
		Stdin:  io.TeeReader(io.LimitReader(rand.NewChaCha8(seed), size), sent),
		Stdout: got, Stderr: &stderr,
		State:  func(api.Job) { states++ },
		Notice: func(text string) { notices += text },
	})
	if err != nil || job.Result == nil || job.Result.Outcome != runner.Succeeded {
		t.Fatal(job, err)
	}
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) || stderr.String() != "done\n" || notices != "cache k: saved" {
		t.Errorf("what came back is not what was sent; %q, %q", stderr.String(), notices)
	}
	// Once more: it is over, and says so.
	if job, err := c.Attach(t.Context(), id, client.Terminal{}); err != nil || job.Result == nil {
		t.Error(job, err)
	}
}

// slow is a writer that stops for a while.
type slow struct{ stop chan struct{} }

func (s slow) Write(p []byte) (int, error) { <-s.stop; return len(p), nil }

func TestAttachBackPressure(t *testing.T) {
	var wrote int
	progress := make(chan int, 1<<16)
	_, c, id := attachable(t, func(at **api.Attachments) func(context.Context, runner.Request, []string, func(runner.Stream, string)) runner.Result {
		return func(ctx context.Context, r runner.Request, _ []string, _ func(runner.Stream, string)) runner.Result {
			session, err := (*at).Session(ctx, r.ID)
			if err != nil {
				return runner.Result{Outcome: runner.Errored}
			}
			w := session.Stream(ctx, runner.Stdout)
			for range 32 << 10 {
				n, err := w.Write(make([]byte, 1<<10))
				if err != nil {
					return runner.Result{Outcome: runner.Errored}
				}
				progress <- n
			}
			return runner.Result{Outcome: runner.Succeeded}
		}
	})
	stop := make(chan struct{})
	time.AfterFunc(300*time.Millisecond, func() {
		wrote = len(progress) << 10
		close(stop)
	})
	job, err := c.Attach(t.Context(), id, client.Terminal{Stdout: slow{stop}})
	if err != nil || job.Result.Outcome != runner.Succeeded {
		t.Fatal(job, err)
	}
	if wrote == 0 || wrote > 8<<20 {
		t.Errorf("%d bytes were written although nobody read them", wrote)
	}
}

func TestAttachSignalsAndCancel(t *testing.T) {
	signals := make(chan syscall.Signal, 1)
	resized := make(chan sandbox.WindowSize, 1)
	stdin := make(chan error, 1)
	run := func(at **api.Attachments) func(context.Context, runner.Request, []string, func(runner.Stream, string)) runner.Result {
		return func(ctx context.Context, r runner.Request, _ []string, _ func(runner.Stream, string)) runner.Result {
			session, err := (*at).Session(ctx, r.ID)
			if err != nil {
				return runner.Result{Outcome: runner.Errored, Message: err.Error()}
			}
			// Nobody reads the standard input, which is far more than a window; signals come nevertheless.
			signals <- <-session.Signals
			resized <- <-session.Resize
			<-ctx.Done()
			_, err = io.Copy(io.Discard, session.Stdin())
			stdin <- err
			return runner.Result{}
		}
	}
	s, c, id := attachable(t, run)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	toSend, size := make(chan syscall.Signal, 1), make(chan sandbox.WindowSize, 1)
	toSend <- syscall.SIGTERM
	size <- sandbox.WindowSize{Rows: 40, Cols: 132}
	attached := make(chan error, 1)
	go func() {
		_, err := c.Attach(ctx, id, client.Terminal{Stdin: io.LimitReader(rand.NewChaCha8([32]byte{}), 10<<20), Signals: toSend, Resize: size})
		attached <- err
	}()
	if got := <-signals; got != syscall.SIGTERM {
		t.Error(got)
	}
	if got := <-resized; got.Cols != 132 || got.Rows != 40 {
		t.Error(got)
	}
	_, err := c.Attach(t.Context(), id, client.Terminal{})
	status(t, err, 409, "another client")
	cancel() // the client vanishes
	if err := <-attached; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	job, err := client.New(s.Socket).Wait(t.Context(), id)
	if err != nil || job.Result.Outcome != runner.Cancelled || job.Result.Message != "its client went away" {
		t.Error(job.Result, err)
	}
	if err := <-stdin; !errors.Is(err, api.ErrNoClient) {
		t.Error(err)
	}
}

func TestCancelWhileAttached(t *testing.T) {
	_, c, id := attachable(t, echo)
	r, w := io.Pipe() // an input that never ends
	defer func() { _ = w.Close() }()
	result := make(chan api.Job, 1)
	go func() {
		job, err := c.Attach(t.Context(), id, client.Terminal{Stdin: r, State: func(api.Job) {}})
		if err != nil {
			t.Error(err)
		}
		result <- job
	}()
	go func() { _, _ = w.Write([]byte("x")) }()
	// The fake's job ends when its input does; a cancelled one is told by its context.
	time.Sleep(50 * time.Millisecond)
	if _, err := c.Cancel(t.Context(), id, "enough"); err != nil {
		t.Fatal(err)
	}
	_ = w.CloseWithError(io.EOF)
	if job := <-result; job.Result.Outcome != runner.Cancelled || job.Result.Message != "enough" {
		t.Error(job.Result)
	}
}

func TestBadClients(t *testing.T) {
	for name, send := range map[string][]byte{
		"garbage":      []byte("GET / HTTP/1.1\r\n\r\n\r\n\r\n\r\n\r\n\r\n"),
		"huge frame":   {0x10, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0},
		"over window":  bytes.Repeat(api.Frame{Type: api.FrameStdin, Data: make([]byte, 1<<16)}.Append(nil), 5),
		"empty signal": api.Frame{Type: api.FrameSignal}.Append(nil),
		"signal 200":   api.Frame{Type: api.FrameSignal, Data: []byte{200}}.Append(nil),
		"its own type": api.Frame{Type: api.FrameResult, Data: []byte("{}")}.Append(nil),
	} {
		t.Run(name, func(t *testing.T) {
			s, c, id := attachable(t, func(**api.Attachments) func(context.Context, runner.Request, []string, func(runner.Stream, string)) runner.Result {
				return func(ctx context.Context, _ runner.Request, _ []string, _ func(runner.Stream, string)) runner.Result {
					<-ctx.Done()
					return runner.Result{}
				}
			})
			conn, err := net.Dial("unix", s.Socket)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_, _ = fmt.Fprintf(conn, "POST /v1/jobs/%s/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", id, api.Protocol)
			_, _ = conn.Write(send)
			job, err := c.Wait(t.Context(), id)
			if err != nil || job.Result.Outcome != runner.Cancelled {
				t.Error(job.Result, err)
			}
		})
	}
}

type entry struct {
	name, link, data string
	kind             byte
	mode             int64
}

func tarOf(entries ...entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		if e.mode == 0 {
			e.mode = 0o644
		}
		_ = w.WriteHeader(&tar.Header{Name: e.name, Linkname: e.link, Size: int64(len(e.data)), Typeflag: e.kind, Mode: e.mode})
		_, _ = io.WriteString(w, e.data)
	}
	_ = w.Close()
	return b.Bytes()
}

func TestUpload(t *testing.T) {
	s := apitest.Start(t, nil)
	c := client.New(s.Socket)
	w, err := c.Upload(t.Context(), bytes.NewReader(tarOf(
		entry{name: "./", kind: tar.TypeDir, mode: 0o755},
		entry{name: "link", link: "sub/deep/file", kind: tar.TypeSymlink},
		entry{name: "dangling", link: "nothing", kind: tar.TypeSymlink},
		entry{name: "sub/", kind: tar.TypeDir, mode: 0o500},
		entry{name: "sub/up", link: "../link", kind: tar.TypeSymlink},
		entry{name: "sub/deep/file", data: "hello", mode: 0o6755},
	)))
	if err != nil || w.Bytes != 5 || w.Entries != 6 {
		t.Fatal(w, err)
	}
	fi, err := os.Stat(filepath.Join(s.Workspaces, w.ID, "link"))
	if err != nil || fi.Mode() != 0o755 {
		t.Error(fi.Mode(), err)
	}
}

func TestUploadAttacks(t *testing.T) {
	s := apitest.Start(t, nil)
	c := client.New(s.Socket)
	outside := filepath.Join(t.TempDir(), "victim")
	many := make([]entry, 1001)
	for i := range many {
		many[i] = entry{name: fmt.Sprint("f", i)}
	}
	for name, x := range map[string]struct {
		status  int
		entries []entry
	}{
		"parent":              {422, []entry{{name: "../evil", data: "x"}}},
		"hidden parent":       {422, []entry{{name: "a/../../evil", data: "x"}}},
		"absolute":            {422, []entry{{name: outside, data: "x"}}},
		"empty name":          {422, []entry{{name: "", data: "x"}}},
		"symlink out":         {422, []entry{{name: "l", link: "../..", kind: tar.TypeSymlink}}},
		"absolute symlink":    {422, []entry{{name: "l", link: "/etc", kind: tar.TypeSymlink}}},
		"through a symlink":   {422, []entry{{name: "l", link: filepath.Dir(outside), kind: tar.TypeSymlink}, {name: "l/victim", data: "x"}}},
		"through ../":         {422, []entry{{name: "l", link: "..", kind: tar.TypeSymlink}, {name: "l/victim", data: "x"}}},
		"a chain of symlinks": {422, []entry{{name: "a/b/s", link: "../..", kind: tar.TypeSymlink}, {name: "e", link: "a/b/s/..", kind: tar.TypeSymlink}}},
		"write onto symlink":  {422, []entry{{name: "l", link: "x", kind: tar.TypeSymlink}, {name: "l", data: "x"}}},
		"dir onto symlink":    {422, []entry{{name: "d/", kind: tar.TypeDir}, {name: "l", link: "d", kind: tar.TypeSymlink}, {name: "l/", kind: tar.TypeDir}}},
		"twice":               {422, []entry{{name: "a", data: "x"}, {name: "a", data: "y"}}},
		"under a file":        {422, []entry{{name: "a", data: "x"}, {name: "a/b", data: "y"}}},
		"hard link":           {422, []entry{{name: "h", link: "/etc/passwd", kind: tar.TypeLink}}},
		"device":              {422, []entry{{name: "null", kind: tar.TypeChar}}},
		"fifo":                {422, []entry{{name: "fifo", kind: tar.TypeFifo}}},
		"self":                {422, []entry{{name: "l", link: "l", kind: tar.TypeSymlink}, {name: "l/x", data: "y"}}},
		"deep":                {422, []entry{{name: strings.Repeat("d/", 300) + "f", data: "x"}}},
		"too big":             {413, []entry{{name: "a", data: strings.Repeat("x", 1<<20)}, {name: "b", data: "x"}}},
		"too many":            {413, many},
	} {
		_, err := c.Upload(t.Context(), bytes.NewReader(tarOf(x.entries...)))
		var p *client.Problem
		if !errors.As(err, &p) || p.Status != x.status {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := c.Upload(t.Context(), bytes.NewReader(append(tarOf(entry{name: "a"})[:512], bytes.Repeat([]byte("x"), 5000)...)))
	status(t, err, 422, "tar")
	if left, err := os.ReadDir(s.Workspaces); err != nil || len(left) != 0 {
		t.Error("something was left:", left, err)
	}
	if _, err := os.Lstat(outside); err == nil {
		t.Error("a file was written outside")
	}
}

type builder func(dir string, b api.Build) ([]api.Target, error)

func (f builder) Plan(_ context.Context, dir string, b api.Build) ([]api.Target, error) {
	return f(dir, b)
}

func TestBuild(t *testing.T) {
	release := make(chan struct{})
	s := apitest.Start(t, func(c *api.Config, b *apitest.Backend) {
		b.Run = func(_ context.Context, r runner.Request, secrets []string, _ func(runner.Stream, string)) runner.Result {
			if len(secrets) != 1 || r.Kind != api.KindBuild || r.Group == "" {
				t.Error(r, secrets)
			}
			<-release
			return runner.Result{Outcome: runner.Succeeded}
		}
		c.Builder = builder(func(dir string, b api.Build) ([]api.Target, error) {
			if _, err := os.Stat(filepath.Join(dir, "Dockerfile")); err != nil {
				return nil, &api.FileError{File: "Dockerfile", Message: "does not exist"}
			}
			if b.NoCache {
				return nil, fmt.Errorf("read: %w", &api.FileError{File: "docker-bake.hcl", Line: 3, Column: 7, Message: "what is this?"})
			}
			var targets []api.Target
			for _, name := range b.Targets {
				targets = append(targets, api.Target{Request: runner.Request{Name: name, Nesting: sandbox.Nesting{"container"}}, Secrets: []string{string(b.Secrets["s"])}})
			}
			return targets, nil
		})
	})
	c := client.New(s.Socket)
	upload := func(name string) string {
		w, err := c.Upload(t.Context(), bytes.NewReader(tarOf(entry{name: name})))
		if err != nil {
			t.Fatal(err)
		}
		return w.ID
	}
	ws := upload("Dockerfile")
	b := api.Build{Workspace: ws, Targets: []string{"a", "b"}, Secrets: map[string][]byte{"s": []byte("x")}}
	got, err := c.Build(t.Context(), b)
	if err != nil || len(got.Jobs) != 2 || got.Jobs[0].Group != got.Group || got.Jobs[1].Name != "b" {
		t.Fatal(got, err)
	}
	_, err = c.Build(t.Context(), b)
	status(t, err, 409, "another build")
	if jobs, err := c.Jobs(t.Context(), api.Filter{Group: got.Group}); err != nil || len(jobs) != 2 {
		t.Error(jobs, err)
	}
	close(release)
	for _, j := range got.Jobs {
		if _, err := c.Wait(t.Context(), j.ID); err != nil {
			t.Error(err)
		}
	}
	_, err = c.Build(t.Context(), api.Build{Workspace: upload("Dockerfile"), NoCache: true})
	status(t, err, 422, "docker-bake.hcl:3:7: what is this?")
	_, err = c.Build(t.Context(), api.Build{Workspace: upload("x")})
	status(t, err, 422, "Dockerfile: does not exist")
	_, err = c.Build(t.Context(), api.Build{Workspace: upload("Dockerfile")})
	status(t, err, 422, "nothing to build")
	_, err = c.Build(t.Context(), api.Build{Workspace: "../x"})
	status(t, err, 404, "workspace")
	for range 100 {
		if left, _ := os.ReadDir(s.Workspaces); len(left) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("workspaces were left")
}

func TestRecover(t *testing.T) {
	s := apitest.Start(t, func(_ *api.Config, b *apitest.Backend) {
		b.Run = func(ctx context.Context, _ runner.Request, _ []string, _ func(runner.Stream, string)) runner.Result {
			<-ctx.Done()
			return runner.Result{}
		}
	})
	for _, id := range []string{"used", "unused", ".partial-x"} {
		if err := os.MkdirAll(filepath.Join(s.Workspaces, id, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Backend.Submit(t.Context(), []runner.Request{{ID: "j", Group: "used"}}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(s.Workspaces)
	if err != nil || len(left) != 1 || left[0].Name() != "used" {
		t.Error(left, err)
	}
}

func TestStopCutsStreams(t *testing.T) {
	// The cleanup of Start fails if Serve does not return although a client follows a log.
	s := apitest.Start(t, func(_ *api.Config, b *apitest.Backend) {
		b.Run = func(ctx context.Context, _ runner.Request, _ []string, log func(runner.Stream, string)) runner.Result {
			log(runner.Stdout, "x")
			<-ctx.Done()
			return runner.Result{}
		}
	})
	c := client.New(s.Socket)
	job, err := c.Submit(t.Context(), script("x"))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan struct{})
	go func() {
		_ = c.Log(context.Background(), job.ID, true, func(api.Frame) error { close(seen); return nil })
	}()
	<-seen
}

// A client that is attached learns how its job ended although the daemon stops right after.
func TestStopAfterResult(t *testing.T) {
	for range 5 {
		ctx, stop := context.WithCancel(t.Context())
		release := make(chan struct{})
		var at *api.Attachments
		s := apitest.Start(t, func(c *api.Config, b *apitest.Backend) {
			at = c.Attachments
			b.Run = func(ctx context.Context, r runner.Request, _ []string, _ func(runner.Stream, string)) runner.Result {
				session, err := at.Session(ctx, r.ID)
				if err != nil {
					return runner.Result{Outcome: runner.Errored}
				}
				<-release
				_, _ = session.Stream(ctx, runner.Stdout).Write(make([]byte, 100<<10))
				return runner.Result{Outcome: runner.Failed, ExitCode: 9}
			}
		})
		socket := s.Socket + "2"
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx, l) }()
		c := client.New(socket)
		sub := script("x")
		sub.Attach = true
		job, err := c.Submit(t.Context(), sub)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		ended := make(chan error, 1)
		go func() {
			job, err := c.Attach(t.Context(), job.ID, client.Terminal{Stdout: &got, State: func(api.Job) {}})
			if err == nil && job.Result.ExitCode != 9 {
				err = fmt.Errorf("%+v", job.Result)
			}
			ended <- err
		}()
		time.Sleep(20 * time.Millisecond) // attached
		close(release)
		stop()
		if err := <-ended; err != nil || got.Len() != 100<<10 {
			t.Error(err, got.Len())
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}
