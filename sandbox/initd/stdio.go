package initd

import "github.com/runnerd/runnerd/sandbox"

// Stdio is the standard files of a process that is not started by the init but by another program in the sandbox.
type Stdio struct{ s streams }

// OpenStdio makes the standard files of p, which has no terminal. They are as those that Exec makes.
func OpenStdio(p sandbox.Process) (*Stdio, error) {
	s := &Stdio{streams{done: make(chan struct{})}}
	if err := s.s.open(p); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// FDs are the process's input, output and errors.
func (s *Stdio) FDs() []int { return s.s.fds }

// Passed is to be called once the process has them.
func (s *Stdio) Passed() { s.s.passed() }

// Drain waits for the rest of the output, after the process's end.
func (s *Stdio) Drain() { s.s.drain() }

// Close ends all copies but a Read of the caller's input that is under way.
func (s *Stdio) Close() { s.s.close() }
