package container

import (
	"fmt"
	"sync"
)

// rangeSize is the number of ids a sandbox gets: all that 16 bits can name, since images use ids up to
// 65534 (nobody).
const rangeSize = 65536

// uidRanges hands out exclusive host id ranges. What is not released is never handed out twice, so two
// sandboxes of one machine never share a host id, however they end.
type uidRanges struct {
	first uint32 // host id of the first range
	count int

	mu   sync.Mutex
	used map[int]string // index of a range to whom it belongs
	next int            // where to look first: a range rests as long as possible before it is used again
}

func newUIDRanges(first uint32, count int) *uidRanges {
	return &uidRanges{first: first, count: count, used: map[int]string{}}
}

// acquire returns the host id that id 0 of the sandbox maps to.
func (r *uidRanges) acquire(owner string) (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.count {
		index := (r.next + i) % r.count
		if _, taken := r.used[index]; !taken {
			r.used[index] = owner
			r.next = index + 1
			return r.base(index), nil
		}
	}
	return 0, fmt.Errorf("all %d uid ranges are in use: raise uid_range.count", r.count)
}

// claim takes the range that starts at base, which a disk from an earlier start belongs to.
func (r *uidRanges) claim(base uint32, owner string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	index := int((int64(base) - int64(r.first)) / rangeSize)
	if index < 0 || index >= r.count || r.base(index) != base {
		return fmt.Errorf("uid range %d is outside the configured ones (uid_range.first, uid_range.count)", base)
	}
	if other, taken := r.used[index]; taken && other != owner {
		return fmt.Errorf("uid range %d of %s belongs to %s", base, owner, other)
	}
	r.used[index] = owner
	return nil
}

func (r *uidRanges) release(base uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.used, int((base-r.first)/rangeSize))
}

func (r *uidRanges) base(index int) uint32 { return r.first + uint32(index)*rangeSize }
