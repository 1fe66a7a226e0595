package buildkit

import "github.com/runnerd/runnerd/scope"

// Counts are how many workers there are.
type Counts struct {
	Busy int // they build
	Idle int // they wait for the next build
}

// Count counts the workers by the trust of their scopes.
func (ws *Workers) Count() map[scope.Trust]Counts {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	n := map[scope.Trust]Counts{scope.Trusted: {}, scope.Untrusted: {}}
	for _, w := range ws.all {
		c := n[w.scope.Trust]
		if w.leases > 0 {
			c.Busy++
		} else {
			c.Idle++
		}
		n[w.scope.Trust] = c
	}
	return n
}
