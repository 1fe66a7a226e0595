package gitlabtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// RunOptions say what a pipeline is made of.
type RunOptions struct {
	// Dir is the project's directory. It need not be a repository, and may have changes that are not committed: they are
	// in the pipeline's commit, and nothing is written there. Empty: the
	// project's, or else an empty one.
	Dir string
	// File is the pipeline's; empty: .gitlab-ci.yml.
	File string
	// Source is CI_PIPELINE_SOURCE; empty: push. Branch is the ref's name; empty: the one that is checked out. Tag is for
	// a pipeline of a tag instead.
	Source, Branch, Tag string
	// Variables are those of whoever starts the pipeline.
	Variables map[string]string
	// Pipeline is one that is read already; nil: File is read.
	Pipeline *ciyaml.Pipeline
}

// Pipeline is what is known of a pipeline.
type Pipeline struct {
	ID       int64     `json:"id"`
	Status   Status    `json:"status"`
	Name     string    `json:"name,omitempty"`
	Ref      string    `json:"ref"`
	SHA      string    `json:"sha"`
	Source   string    `json:"source"`
	Created  time.Time `json:"created_at"`
	Finished time.Time `json:"finished_at,omitzero"`
	Warnings []string  `json:"warnings,omitempty"`
	Jobs     []int64   `json:"jobs"` // the latest of each name
}

type pipeline struct {
	Pipeline
	iid       int
	def       *ciyaml.Pipeline
	commit    commit
	tag       bool
	given     map[string]string // variables
	variables []spec.Variable   // that do not depend on the job
	byName    map[string]*job   // the latest of each name
	order     []string
}

// Run starts a pipeline. The error is ciyaml's, where the file is at fault.
func (s *Server) Run(ctx context.Context, o RunOptions) (Pipeline, error) {
	o.Dir = defaulted(o.Dir, s.o.Project.Dir)
	if o.Dir != "" { // git runs elsewhere
		dir, err := filepath.Abs(o.Dir)
		if err != nil {
			return Pipeline{}, err
		}
		o.Dir = dir
	}
	commit, err := s.snapshot(ctx, o.Dir)
	if err != nil {
		return Pipeline{}, fmt.Errorf("take the project's state: %w", err)
	}
	s.mu.Lock()
	p := &pipeline{Pipeline: Pipeline{
		ID: s.nextID(), Status: Created, SHA: commit.sha, Ref: defaulted(o.Branch, commit.branch),
		Source: defaulted(o.Source, "push"), Created: time.Now(),
	}, iid: len(s.pipelines) + 1, commit: commit, given: o.Variables, byName: map[string]*job{}}
	s.mu.Unlock()
	if o.Tag != "" {
		p.Ref, p.tag = o.Tag, true
	}
	if err := s.publish(ctx, p); err != nil {
		return Pipeline{}, fmt.Errorf("publish the commit: %w", err)
	}
	p.variables = s.pipelineVariables(p)
	if p.def = o.Pipeline; p.def == nil {
		if p.def, err = s.parse(p, o); err != nil {
			return Pipeline{}, err
		}
	}
	p.Name, p.Warnings = p.def.Name, p.def.Warnings

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Pipeline{}, errors.New("the server is closed")
	}
	s.pipelines = append(s.pipelines, p)
	for _, def := range p.def.Jobs {
		p.order = append(p.order, def.Name)
		p.byName[def.Name] = s.addJob(p, def, s.template(p, def))
	}
	s.advance(p)
	s.notify()
	return p.view(), nil
}

// parse reads the pipeline's file. Its variables are told apart by what made them, so the parser gets all names.
func (s *Server) parse(p *pipeline, o RunOptions) (*ciyaml.Pipeline, error) {
	in := ciyaml.Options{
		Source: p.Source, DefaultBranch: s.defaultBranch(p), ProjectPath: s.o.Project.Path,
		Protected: !s.o.Project.Unprotected, Predefined: map[string]string{}, Variables: map[string]string{},
	}
	if p.tag {
		in.Tag = p.Ref
	} else {
		in.Branch = p.Ref
	}
	for _, v := range p.variables {
		in.Predefined[v.Key] = v.Value
	}
	for _, v := range s.o.Variables {
		in.Variables[v.Key] = v.Value
	}
	for k, v := range o.Variables {
		in.Variables[k] = v
	}
	dir := defaulted(o.Dir, s.dir)
	return ciyaml.Parse(os.DirFS(dir), defaulted(o.File, ".gitlab-ci.yml"), in)
}

func (s *Server) defaultBranch(p *pipeline) string {
	return defaulted(s.o.Project.DefaultBranch, p.commit.branch)
}

// Pipelines are all that there are, in the order in which they were started.
func (s *Server) Pipelines() []Pipeline {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Pipeline, len(s.pipelines))
	for i, p := range s.pipelines {
		out[i] = p.view()
	}
	return out
}

// WaitPipeline returns a pipeline once nothing of it runs or will run by itself: it has ended, or waits for somebody to
// play a job (Manual).
func (s *Server) WaitPipeline(ctx context.Context, id int64) (Pipeline, error) {
	for {
		s.mu.Lock()
		i := slices.IndexFunc(s.pipelines, func(p *pipeline) bool { return p.ID == id })
		if i < 0 {
			s.mu.Unlock()
			return Pipeline{}, fmt.Errorf("pipeline %d: %w", id, ErrUnknown)
		}
		view, changed := s.pipelines[i].view(), s.changed
		s.mu.Unlock()
		if view.Status.Ended() || view.Status == Manual {
			return view, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return view, fmt.Errorf("pipeline %d is still %s: %w", id, view.Status, context.Cause(ctx))
		}
	}
}

// CancelPipeline cancels all jobs of a pipeline that have not ended.
func (s *Server) CancelPipeline(id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pipelines {
		if p.ID != id {
			continue
		}
		for _, name := range slices.Backward(p.order) { // so that none starts when another ends
			if j := p.byName[name]; !j.Status.Ended() && j.Status != Canceling {
				s.cancel(j)
			}
		}
		return nil
	}
	return fmt.Errorf("pipeline %d: %w", id, ErrUnknown)
}

// Play starts a manual job, or a delayed one at once.
func (s *Server) Play(id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.job(id)
	if j == nil {
		return fmt.Errorf("job %d: %w", id, ErrUnknown)
	}
	if j.Status != Manual && j.Status != Scheduled {
		return fmt.Errorf("play job %d: it is %s: %w", id, j.Status, ErrState)
	}
	s.stop(j.started)
	s.start(j)
	s.advance(j.pipeline)
	return nil
}

// Retry makes a new job of one that has ended, and lets those that were skipped after it have their turn again.
func (s *Server) Retry(id int64) (Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.job(id)
	if j == nil {
		return Job{}, fmt.Errorf("job %d: %w", id, ErrUnknown)
	}
	if !j.Status.Ended() || j.pipeline != nil && j.pipeline.byName[j.Name] != j {
		return Job{}, fmt.Errorf("retry job %d: it is %s: %w", id, j.Status, ErrState)
	}
	again := s.repeat(j)
	if p := j.pipeline; p != nil {
		for _, name := range p.order {
			if other := p.byName[name]; other.Status == Skipped {
				other.Status = Created
			}
		}
		s.advance(p)
	}
	return again.view(), nil
}

// repeat offers a job anew, under an id of its own.
func (s *Server) repeat(j *job) *job {
	template := j.spec
	template.ID = 0
	again := s.addJob(j.pipeline, j.def, template)
	again.RetryOf = j.ID
	if j.pipeline != nil {
		j.pipeline.byName[j.Name] = again
	}
	s.start(again)
	return again
}

func (p *pipeline) view() Pipeline {
	v := p.Pipeline
	v.Jobs = nil
	for _, name := range p.order {
		v.Jobs = append(v.Jobs, p.byName[name].ID)
	}
	return v
}
