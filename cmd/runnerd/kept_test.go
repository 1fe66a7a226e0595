package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/archive"
	"github.com/runnerd/runnerd/cache"
	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

func TestParseKept(t *testing.T) {
	k, err := parseKept([]string{`key=a=b,path=x,"path=y,z",fallback=f,fallback=g,policy=pull,when=always`}, []string{"dist,*.txt", "path=a,name=n.tar,keep=1h,when=on_failure"})
	want := api.Kept{
		Caches:    []api.Cache{{Key: "a=b", Fallback: []string{"f", "g"}, Paths: []string{"x", "y,z"}, Policy: "pull", When: "always"}},
		Artifacts: []api.Artifact{{Paths: []string{"dist", "*.txt"}}, {Name: "n.tar", Paths: []string{"a"}, When: "on_failure", Keep: runner.Duration(time.Hour)}},
	}
	if err != nil || fmt.Sprint(k) != fmt.Sprint(want) {
		t.Errorf("%+v, %v", k, err)
	}
	for _, c := range [][2]string{
		{"--cache", "path=x"},
		{"--cache", "key=k"},
		{"--cache", "key=a,key=b,path=x"},
		{"--cache", "key=a,path=x,policy=both"},
		{"--cache", "key=a,path=x,when=never"},
		{"--cache", "key=a,x"},
		{"--cache", "key=a,path=x,to=y"},
		{"--cache", `"`},
		{"--cache", ""},
		{"--artifact", "name=x"},
		{"--artifact", "x,keep=long"},
		{"--artifact", "x,when=no"},
		{"--artifact", "x,y=z"},
	} {
		caches, artifacts := []string{c[1]}, []string(nil)
		if c[0] == "--artifact" {
			caches, artifacts = artifacts, caches
		}
		if _, err := parseKept(caches, artifacts); err == nil || !strings.HasPrefix(err.Error(), c[0]) {
			t.Errorf("%s %s: %v", c[0], c[1], err)
		}
	}
}

// localHost runs a sandbox's init, as far as it archives, and scripts that are functions, in a directory.
type localHost struct {
	dir    string
	script func() sandbox.Exit
	broken func(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) // instead of archiving
}

func (h *localHost) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	if len(p.Args) == 1 {
		return h.script(), nil
	}
	if h.broken != nil {
		return h.broken(ctx, p)
	}
	return sandbox.Exit{Code: archive.Command(h.dir, p.Args[2:], p.Stdin, p.Stdout, p.Stderr)}, nil
}

type noticed struct{ bytes.Buffer }

func (n *noticed) Stream(s runner.Stream) io.Writer {
	if s == runner.Notice {
		return &n.Buffer
	}
	return io.Discard
}

// noted is what the ledger would be told.
type noted struct{ reads, writes []string }

func (n *noted) Copied(string, sandbox.CopyWay, int64) {}

func (n *noted) Read(store, entry, job string, _ scope.Scope) {
	n.reads = append(n.reads, store+" "+entry+" "+job)
}

func (n *noted) Wrote(store, entry, job string, _ scope.Scope) {
	n.writes = append(n.writes, store+" "+entry+" "+job)
}

// keptJob runs a job that keeps something, in a new directory, on h.
func keptJob(t *testing.T, store *cache.Store, h *localHost, kept api.Kept) (exit sandbox.Exit, notices string, err error) {
	t.Helper()
	h.dir = t.TempDir()
	payload, err := json.Marshal(struct {
		api.Script
		api.Kept
	}{api.Script{Command: []string{"script"}}, kept})
	if err != nil {
		t.Fatal(err)
	}
	r := runner.Request{ID: "job-1", Kind: api.KindScript, Payload: payload, Scope: scope.Scope{Forge: scope.Local, Project: "p", Trust: scope.Trusted}}
	script, err := newScriptStep(t.Context(), r, api.NewAttachments())
	if err != nil {
		t.Fatal(err)
	}
	step, err := newKeptStep(r, script, store, config.Cache{MaxEntry: 1 << 30, MaxFiles: 100, Timeout: config.Duration(2 * time.Second), KeepArtifact: config.Duration(time.Hour)}, &noted{})
	if err != nil {
		t.Fatal(err)
	}
	var out noticed
	exit, err = step.Run(t.Context(), h, &out)
	return exit, out.String(), err
}

func TestKeptStep(t *testing.T) {
	store, err := cache.Open(t.Context(), cache.Config{Dir: filepath.Join(t.TempDir(), "cache")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	h := &localHost{}
	writes := func(text string, code int) func() sandbox.Exit {
		return func() sandbox.Exit {
			if err := os.WriteFile(filepath.Join(h.dir, "f"), []byte(text), 0o644); err != nil {
				t.Error(err)
			}
			return sandbox.Exit{Code: code}
		}
	}
	finds := func(want string) func() sandbox.Exit {
		return func() sandbox.Exit {
			if got, _ := os.ReadFile(filepath.Join(h.dir, "f")); string(got) != want {
				t.Errorf("the script finds %q, not %q", got, want)
			}
			return sandbox.Exit{}
		}
	}
	c := api.Cache{Key: "k", Paths: []string{"f"}}
	pull := api.Cache{Key: "k", Paths: []string{"f"}, Policy: "pull"}
	step := func(what string, script func() sandbox.Exit, kept api.Kept, code int, words ...string) {
		t.Helper()
		h.script = script
		exit, notices, err := keptJob(t, store, h, kept)
		if err != nil || exit.Code != code {
			t.Errorf("%s: %v, %v", what, exit, err)
		}
		for _, w := range words {
			if not, ok := strings.CutPrefix(w, "!"); ok == strings.Contains(notices, strings.TrimPrefix(w, "!")) {
				t.Errorf("%s: %q %v in %q", what, not, ok, notices)
			}
		}
	}
	caches := func(c ...api.Cache) api.Kept { return api.Kept{Caches: c} }
	step("the first", writes("one", 0), caches(c), 0, "cache k: miss", "saved", "1 files")
	step("the second", finds("one"), caches(c), 0, "restored", "from p, written by job job-1", "saved", "0.0 MiB new")
	step("a failing one", writes("two", 1), caches(c), 1, "restored", "!saved")
	step("pull", writes("two", 0), caches(pull), 0, "restored", "!saved")

	// What fails to pack leaves what there is; what fails to extract is a miss. The script runs whatever happens.
	failing := map[string]func(ctx context.Context, p sandbox.Process) (sandbox.Exit, error){
		"an exit code": func(_ context.Context, p sandbox.Process) (sandbox.Exit, error) {
			_, _ = io.WriteString(p.Stderr, "no\x1b[31m room\n")
			return sandbox.Exit{Code: 1}, nil
		},
		"a signal half-way": func(_ context.Context, p sandbox.Process) (sandbox.Exit, error) {
			if p.Args[2] == "pack" {
				_, _ = io.WriteString(p.Stderr, "path 1\nfurther 0\nfound 1 0\npack\n")
				_, _ = p.Stdout.Write(make([]byte, 3<<20))
			}
			return sandbox.Exit{Code: 137, Signal: 9}, nil
		},
		"an error": func(context.Context, sandbox.Process) (sandbox.Exit, error) {
			return sandbox.Exit{}, errors.New("no process")
		},
		"never": func(ctx context.Context, _ sandbox.Process) (sandbox.Exit, error) {
			<-ctx.Done()
			return sandbox.Exit{}, context.Cause(ctx)
		},
	}
	for name, broken := range failing {
		ran := false
		h.broken = broken
		step(name, func() sandbox.Exit { ran = true; return sandbox.Exit{} }, caches(c), 0, "miss: k of job job-1 was not restored", "not saved", "!\x1b")
		h.broken = nil
		if !ran {
			t.Errorf("%s: the script did not run", name)
		}
		step("after "+name, finds("one"), caches(pull), 0, "restored")
	}

	step("an artifact", writes("three", 0), api.Kept{Artifacts: []api.Artifact{{Name: "a.tar", Paths: []string{"f"}}}}, 0, "artifact a.tar: kept")
	step("no file", writes("three", 0), api.Kept{Artifacts: []api.Artifact{{Name: "b.tar", Paths: []string{"g"}}}}, 1, "not kept: no file matches")
	step("no file, failed", writes("three", 7), api.Kept{Artifacts: []api.Artifact{{Name: "b.tar", Paths: []string{"g"}, When: "always"}}}, 7, "not kept")
	all, err := artifacts{store}.List(t.Context(), scope.Scope{Forge: scope.Local, Project: "p", Trust: scope.Trusted}, "job-1")
	if err != nil || len(all) != 1 || all[0].Name != "a.tar" || all[0].Expires.IsZero() {
		t.Errorf("%+v, %v", all, err)
	}
}
