package buildkit

import (
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// TestShares holds that who builds pays, that those who build at once pay alike, and that nothing is lost.
func TestShares(t *testing.T) {
	var worker sandbox.Usage
	s := shares{read: func() (sandbox.Usage, error) { return worker, nil }}
	use := func(cpu time.Duration) {
		worker.CPU += cpu
		worker.Written += int64(cpu)
		worker.Parts = []sandbox.Part{{Name: sandbox.PartBuildSteps, Payload: true, CPU: worker.CPU / 2}, {Name: sandbox.PartBuildKitd, CPU: worker.CPU - worker.CPU/2, Written: worker.Written}}
	}
	of := func(l *share) time.Duration {
		t.Helper()
		u, _, err := s.of(l)
		if sum := u.Sum(true).CPU + u.Sum(false).CPU; err != nil || sum-u.CPU > 10 || u.CPU-sum > 10 || u.Sum(false).Written != u.Written {
			t.Errorf("%+v, %v", u, err)
		}
		return u.CPU
	}
	use(1000) // nobody's
	a := s.begin()
	use(100) // a's, who is alone
	b := s.begin()
	use(101) // nobody builds: both have it
	done := s.working(a)
	use(50)
	bDone := s.working(b)
	use(20)
	done()
	use(7)
	bDone()
	bDone()
	if got := of(a); got != 100+51+50+10 {
		t.Errorf("a has used %d", got)
	}
	if got := of(b); got != 50+10+7 {
		t.Errorf("b has used %d", got)
	}
	s.end(a)
	s.end(a)
	use(5)
	if got := of(a); got != 211 {
		t.Errorf("after its end a has used %d", got)
	}
	if got := of(b); got != 72 {
		t.Errorf("b has used %d", got)
	}
	s.end(b)
	c := s.begin()
	s.inherit(c, b.used)
	use(1)
	if got := of(c); got != 73 {
		t.Errorf("c has used %d", got)
	}
}
