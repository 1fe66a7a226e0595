package buildkit

import (
	"context"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/runnerd/runnerd/scope"
)

// pruneTimeout bounds how long a build waits for room.
const pruneTimeout = 5 * time.Minute

// outdated reports whether an idle worker is to be replaced by a new clone: it was made of nothing, or long ago,
// and its trusted scope has built since. ws.mu is held.
func (ws *Workers) outdated(w *worker) bool {
	above, ok := w.scope.Above()
	if !ok || w.leases > 0 || !ws.built[above].After(w.born) {
		return false
	}
	select {
	case <-w.ready:
		return w.err == nil && (!w.cloned || time.Since(w.born) > ws.cfg.CloneAge)
	default:
		return false
	}
}

// tidy makes room on the disk of a worker that has just been taken, if there is too little, and reports whether
// another worker is to be taken instead. BuildKit's own garbage collection is off: it would remove what clones
// stand on.
func (ws *Workers) tidy(ctx context.Context, w *worker) (replaced bool) {
	used := w.diskUsed(ctx)
	if ws.cfg.KeepBytes == 0 || used <= ws.cfg.KeepBytes {
		return false
	}
	log := ws.cfg.Log.With("scope", w.scope, "used", used, "high", ws.cfg.KeepBytes)
	if _, ok := w.scope.Above(); ok { // all that it has of its own is thrown away anyway
		ws.mu.Lock()
		defer ws.mu.Unlock()
		if w.leases > 1 || ws.all[w.scope] != w {
			return false
		}
		log.Info("a builder's disk is filling up: it is replaced by a new clone")
		ws.end(w)
		return true
	}
	// Untrusted builds must not keep a trusted disk full: near its end, they are built again.
	done, ok := ws.alone(ctx, w.scope, used > ws.cfg.KeepBytes/8*9)
	if !ok {
		log.Info("a builder's disk is filling up: nothing is removed while an untrusted build stands on it")
		return false
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
	defer cancel()
	if w.diskUsed(ctx) <= ws.cfg.KeepBytes { // somebody else has removed enough
		return false
	}
	err := w.client.Prune(ctx, nil, client.PruneAll, client.WithKeepOpt(0, 0, ws.cfg.KeepBytes/4*3, 0))
	log.Info("removed what was not used for longest from a builder's disk", "left", w.diskUsed(ctx), "error", err)
	return false
}

// diskUsed is how many bytes of its disk a worker uses.
func (w *worker) diskUsed(ctx context.Context) int64 {
	u, err := w.sb.Usage(ctx)
	if err != nil {
		return 0
	}
	return u.Disk
}

// alone waits until nobody stands on a trusted scope's state and keeps it so until done is called: an idle clone is
// ended first, and with evict a busy one too. If a clone is busy, ok is false.
func (ws *Workers) alone(ctx context.Context, of scope.Scope, evict bool) (done func(), ok bool) {
	below := of
	below.Trust = scope.Untrusted
	for {
		ws.mu.Lock()
		clone, ending, removing := ws.all[below], ws.ending[below], ws.removing[of]
		var wait <-chan struct{}
		switch {
		case removing != nil:
			wait = removing
		case clone != nil && clone.leases > 0 && !evict:
			ws.mu.Unlock()
			return nil, false
		case clone != nil:
			clone.evicted.Store(true)
			ws.end(clone)
			wait = clone.gone
		case ending != nil:
			wait = ending.gone
		default:
			removing = make(chan struct{})
			ws.removing[of] = removing
			ws.mu.Unlock()
			return func() {
				ws.mu.Lock()
				defer ws.mu.Unlock()
				delete(ws.removing, of)
				close(removing)
			}, true
		}
		ws.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, false
		}
	}
}
