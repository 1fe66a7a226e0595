package container

import "fmt"

// rangeSize is the number of ids a sandbox gets: all that 16 bits can name, since images use ids up to
// 65534 (nobody).
const rangeSize = 65536

// uidRanges hands out exclusive host id ranges. What is not released is never handed out twice, so two
// sandboxes of one machine never share a host id, however they end.
type uidRanges struct {
	first  uint32 // host id of the first range
	ranges numbers
}

func newUIDRanges(first uint32, count int) *uidRanges {
	return &uidRanges{first: first, ranges: numbers{count: count}}
}

// acquire returns the host id that id 0 of the sandbox maps to.
func (r *uidRanges) acquire(owner string) (uint32, error) {
	index, ok := r.ranges.acquire(owner)
	if !ok {
		return 0, fmt.Errorf("all %d uid ranges are in use: raise uid_range.count", r.ranges.count)
	}
	return r.base(index), nil
}

// claim takes the range that starts at base, which a disk from an earlier start belongs to.
func (r *uidRanges) claim(base uint32, owner string) error {
	index := int((int64(base) - int64(r.first)) / rangeSize)
	if index < 0 || index >= r.ranges.count || r.base(index) != base {
		return fmt.Errorf("uid range %d is outside the configured ones (uid_range.first, uid_range.count)", base)
	}
	if other := r.ranges.claim(index, owner); other != owner {
		return fmt.Errorf("uid range %d of %s belongs to %s", base, owner, other)
	}
	return nil
}

func (r *uidRanges) release(base uint32) { r.ranges.release(int((base - r.first) / rangeSize)) }

func (r *uidRanges) base(index int) uint32 { return r.first + uint32(index)*rangeSize }
