package gitlabtest

import (
	"slices"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
)

// jobEnded repeats a job that may be, and lets the pipeline go on.
func (s *Server) jobEnded(j *job) {
	p := j.pipeline
	if j.Status == Failed && p.byName[j.Name] == j && j.def.Retry.Again(tries(s, j), j.FailureReason, j.code()) {
		s.repeat(j)
	}
	if g := j.def.ResourceGroup; g != "" {
		i := slices.IndexFunc(s.jobs, func(o *job) bool { return o.Status == Waiting && o.def.ResourceGroup == g })
		if i >= 0 {
			s.start(s.jobs[i])
		}
	}
	s.advance(p)
}

// tries is how often a job has run, with all that it repeats.
func tries(s *Server, j *job) int {
	n := 1
	for ; j.RetryOf != 0; n++ {
		j = s.job(j.RetryOf)
	}
	return n
}

// code is the exit code as ciyaml has it: -1 where there is none.
func (j *job) code() int {
	if j.ExitCode == 0 {
		return -1
	}
	return j.ExitCode
}

// broken says that a job's failure counts.
func (j *job) broken() bool { return j.Status == Failed && !j.def.AllowFailure.Allows(j.code()) }

// advance starts, skips or keeps back each job whose turn has come, and tells the pipeline's status.
func (s *Server) advance(p *pipeline) {
	if p == nil {
		return
	}
	for again := true; again; {
		again = false
		for _, name := range p.order {
			if j := p.byName[name]; j.Status == Created {
				again = s.decide(p, j) || again
			}
		}
	}
	status := p.state()
	if status != p.Status {
		p.Status = status
		if p.Finished = (time.Time{}); status.Ended() {
			p.Finished = time.Now()
		}
		s.o.Log("pipeline %d: %s", p.ID, status)
	}
}

// decide returns whether the job's status changed.
func (s *Server) decide(p *pipeline, j *job) bool {
	var failed, canceled, skipped bool
	for _, def := range p.def.Before(j.def) {
		b := p.byName[def.Name]
		switch {
		case b.Status == Manual && b.def.AllowFailure.Always && !j.def.DAG:
			continue // an optional job, which nobody waits for
		case !b.Status.Ended():
			return false
		}
		failed = failed || b.broken()
		canceled = canceled || b.Status == Canceled
		skipped = skipped || j.def.DAG && b.Status == Skipped
	}
	ok := !failed && !canceled && !skipped
	switch when := j.def.When; {
	case when == "always":
		s.start(j)
	case when == "on_failure" && failed, (when == "" || when == "on_success") && ok:
		s.start(j)
	case when == "manual" && ok:
		j.Status = Manual
	case when == "delayed" && ok:
		j.Status = Scheduled
		j.started = s.after(j.def.StartIn, func() {
			if j.Status == Scheduled {
				s.start(j)
				s.advance(p)
			}
		})
	default:
		j.Status = Skipped
	}
	return true
}

// start offers a job, or has it wait for its resource group.
func (s *Server) start(j *job) {
	busy := func(o *job) bool {
		return o.def.ResourceGroup == j.def.ResourceGroup && (o.Status == Pending || o.Status == Running || o.Status == Canceling)
	}
	if j.def.ResourceGroup != "" && slices.ContainsFunc(s.jobs, busy) {
		j.Status = Waiting
		s.notify()
		return
	}
	s.offer(j)
}

// state is a pipeline's status.
func (p *pipeline) state() Status {
	seen := map[Status]bool{}
	blocked := false
	for _, name := range p.order {
		j := p.byName[name]
		switch {
		case j.broken():
			seen[Failed] = true
		case j.Status == Failed:
			seen[Success] = true
		case j.Status == Manual:
			blocked = blocked || !j.def.AllowFailure.Always
		default:
			seen[j.Status] = true
		}
	}
	switch {
	case seen[Running], seen[Canceling]:
		return Running
	case seen[Pending], seen[Waiting]:
		if seen[Success] || seen[Failed] || seen[Canceled] {
			return Running
		}
		return Pending
	case seen[Scheduled]:
		return Scheduled
	case seen[Created], blocked && !seen[Failed] && !seen[Canceled]:
		return Manual // what is left waits for somebody
	case seen[Failed]:
		return Failed
	case seen[Canceled]:
		return Canceled
	case seen[Success]:
		return Success
	}
	return Skipped
}

// Excluded are the jobs of a pipeline's file that its rules left out.
func (s *Server) Excluded(id int64) []ciyaml.Excluded {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pipelines {
		if p.ID == id {
			return slices.Clone(p.def.Excluded)
		}
	}
	return nil
}
