package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/scope"
)

// Output is a file that a build has written for its client, or an artifact of a job.
type Output struct {
	Name string `json:"name"`
	Type string `json:"type" doc:"As docker buildx build --output has it. A local one is a tar stream of the directory."`
	Dest string `json:"dest,omitempty" doc:"Where the build's author wants it, on the client's machine."`
	Size int64  `json:"size" doc:"Bytes."`
	// Expires is when an artifact is removed. Other outputs go when their client says so.
	Expires time.Time `json:"expires,omitzero" doc:"Of an artifact: when it is removed."`
}

// Artifacts are what jobs leave for longer than until somebody has fetched it.
type Artifacts interface {
	// List returns those of a job of a scope that are there.
	List(ctx context.Context, owner scope.Scope, job string) ([]Output, error)
	// Open opens one. Its reader fails if the bytes are not what was kept. ErrNoOutput: it is gone.
	Open(ctx context.Context, owner scope.Scope, job, name string) (io.ReadCloser, error)
}

// ErrNoOutput is wrapped by the error of an output that is not there.
var ErrNoOutput = errors.New("no such output: it was fetched, or kept for as long as outputs.keep says")

// Outputs keeps what builds write, in a directory a job, until the client removes it or its time is up. All
// together have a size.
type Outputs struct {
	dir  string
	max  int64
	keep time.Duration

	mu   sync.Mutex
	used int64
}

// NewOutputs opens the store in dir, which it makes if need be. maxBytes is that of all outputs together.
func NewOutputs(dir string, maxBytes int64, keep time.Duration) (*Outputs, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of outputs: %w", err)
	}
	o := &Outputs{dir: dir, max: maxBytes, keep: keep}
	jobs, err := o.list()
	for _, id := range jobs {
		o.used += o.size(id)
	}
	return o, err
}

func (o *Outputs) list() (jobs []string, err error) {
	entries, err := os.ReadDir(o.dir)
	for _, e := range entries {
		jobs = append(jobs, e.Name())
	}
	return jobs, err
}

func (o *Outputs) size(job string) (n int64) {
	entries, _ := os.ReadDir(filepath.Join(o.dir, job))
	for _, e := range entries {
		if fi, err := e.Info(); err == nil {
			n += fi.Size()
		}
	}
	return n
}

// Create makes an output of a job. A Write beyond the size of all outputs fails.
func (o *Outputs) Create(job, name string) (io.WriteCloser, error) {
	if !filepath.IsLocal(job) || !filepath.IsLocal(name) || filepath.Base(job) != job || filepath.Base(name) != name {
		return nil, fmt.Errorf("output %q of job %q: not a name", name, job)
	}
	if err := os.MkdirAll(filepath.Join(o.dir, job), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(o.dir, job, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return outputWriter{f, o}, nil
}

type outputWriter struct {
	f *os.File
	o *Outputs
}

func (w outputWriter) Close() error { return w.f.Close() }

func (w outputWriter) Write(p []byte) (int, error) {
	w.o.mu.Lock()
	full := w.o.used+int64(len(p)) > w.o.max
	if !full {
		w.o.used += int64(len(p))
	}
	w.o.mu.Unlock()
	if full {
		return 0, fmt.Errorf("the outputs of all jobs are larger than %d bytes: fetch some, or raise outputs.max_bytes", w.o.max)
	}
	n, err := w.f.Write(p)
	w.o.mu.Lock()
	w.o.used -= int64(len(p) - n)
	w.o.mu.Unlock()
	return n, err
}

// Remove removes a job's outputs. That there are none is no error.
func (o *Outputs) Remove(job string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := o.size(job)
	if err := os.RemoveAll(filepath.Join(o.dir, job)); err != nil {
		return fmt.Errorf("remove the outputs of job %s: %w", job, err)
	}
	o.used -= n
	return nil
}

// old tells whether nothing was written to a job's outputs for as long as they are kept.
func (o *Outputs) old(job string) bool {
	dir := filepath.Join(o.dir, job)
	entries, _ := os.ReadDir(dir)
	for _, name := range append([]string{""}, names(entries)...) {
		if fi, err := os.Stat(filepath.Join(dir, name)); err == nil && time.Since(fi.ModTime()) < o.keep {
			return false
		}
	}
	return true
}

func names(entries []fs.DirEntry) (out []string) {
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// expireOutputs removes what is old, and what of unwanted says so.
func (s *Server) expireOutputs(unwanted func(job string) bool) {
	jobs, err := s.cfg.Outputs.list()
	for _, id := range jobs {
		if s.cfg.Outputs.old(id) || unwanted(id) {
			err = errors.Join(err, s.cfg.Outputs.Remove(id))
		}
	}
	if err != nil {
		s.cfg.Log.Error("outputs were not removed", "error", err)
	}
}

// recoverOutputs removes what an earlier process has left of jobs that did not succeed, and from now on what
// is old.
func (s *Server) recoverOutputs(ctx context.Context) {
	if s.cfg.Outputs == nil {
		return
	}
	s.expireOutputs(func(id string) bool {
		i, err := s.cfg.Backend.Get(ctx, id)
		return errors.Is(err, queue.ErrNotFound) || err == nil && (i.Result == nil || i.Result.Outcome != runner.Succeeded)
	})
	s.cleanups.Go(func() {
		tick := time.NewTicker(min(s.cfg.Outputs.keep, time.Minute))
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.expireOutputs(func(string) bool { return false })
			case <-s.ctx.Done():
				return
			}
		}
	})
}

func (s *Server) outputRoutes() {
	huma.Register(s.api, s.operation(http.MethodGet, "/v1/jobs/{id}/outputs", "list-outputs", "List what a finished job has written: outputs of builds, artifacts", 404, 409),
		func(ctx context.Context, in *jobID) (*body[[]Output], error) {
			all, err := s.outputs(ctx, in.ID)
			if err != nil {
				return nil, problem(err)
			}
			return &body[[]Output]{all}, nil
		})
	remove := s.operation(http.MethodDelete, "/v1/jobs/{id}/outputs", "remove-outputs", "Remove what a finished build has written; artifacts stay until they expire", 404, 409)
	remove.DefaultStatus = http.StatusNoContent
	huma.Register(s.api, remove, func(ctx context.Context, in *jobID) (*struct{}, error) {
		if _, err := s.outputs(ctx, in.ID); err != nil {
			return nil, problem(err)
		}
		if s.cfg.Outputs != nil {
			if err := s.cfg.Outputs.Remove(in.ID); err != nil {
				return nil, problem(err)
			}
		}
		return nil, nil
	})
	s.raw(outputOperation, s.output)
}

// outputs are those of a finished job that are still there.
func (s *Server) outputs(ctx context.Context, id string) ([]Output, error) {
	i, err := s.cfg.Backend.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if i.Result == nil {
		return nil, huma.Error409Conflict(fmt.Sprintf("job %s is not finished: wait for it", id))
	}
	var detail struct {
		Outputs []Output `json:"outputs"`
	}
	_ = json.Unmarshal(i.Result.Detail, &detail) // of other kinds of jobs it is something else
	there := []Output{}
	for _, o := range detail.Outputs {
		if s.cfg.Outputs == nil {
			break
		}
		if _, err := os.Lstat(filepath.Join(s.cfg.Outputs.dir, id, filepath.Base(o.Name))); err == nil {
			there = append(there, o)
		}
	}
	if s.cfg.Artifacts == nil || i.Kind != KindScript {
		return there, nil
	}
	kept, err := s.cfg.Artifacts.List(ctx, i.Scope, id)
	return append(there, kept...), err
}

func outputOperation() *huma.Operation {
	return &huma.Operation{
		Method: http.MethodGet, Path: "/v1/jobs/{id}/outputs/{name}", OperationID: "get-output", Summary: "Fetch one output or artifact of a finished job",
		Description: "A tar stream, whatever the type. It is kept until the outputs are removed, or for the configured time.",
		Parameters: []*huma.Param{
			{Name: "id", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}},
			{Name: "name", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}},
		},
		Responses: map[string]*huma.Response{
			"200": {Description: "The output.", Content: map[string]*huma.MediaType{"application/x-tar": {}}},
			"404": problemResponse(), "409": problemResponse(), "default": problemResponse(),
		},
	}
}

func (s *Server) output(w http.ResponseWriter, r *http.Request) error {
	id, name := r.PathValue("id"), r.PathValue("name")
	all, err := s.outputs(r.Context(), id)
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.Name != name {
			continue
		}
		f, err := s.openOutput(r.Context(), id, o)
		if err != nil {
			break
		}
		defer func() { _ = f.Close() }()
		w.Header().Set("Content-Type", "application/x-tar")
		w.Header().Set("Content-Length", strconv.FormatInt(o.Size, 10))
		_, _ = io.CopyN(w, f, o.Size) // a client that gets less sees that
		return nil
	}
	return fmt.Errorf("job %s, output %q: %w", id, clip(name, 100), ErrNoOutput)
}

func (s *Server) openOutput(ctx context.Context, id string, o Output) (io.ReadCloser, error) {
	if o.Expires.IsZero() {
		return os.Open(filepath.Join(s.cfg.Outputs.dir, id, filepath.Base(o.Name)))
	}
	i, err := s.cfg.Backend.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.cfg.Artifacts.Open(ctx, i.Scope, id, o.Name)
}
