package engine

import (
	"sync"

	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

// Limits of what is kept of memories that are no longer used.
const (
	keptMemories = 2
	keptBytes    = 32 << 20 // of each
)

// memories allocate linear memories outside of Go's heap: they are address space that becomes memory as it is grown into,
// so growing copies nothing, and what a run has used is no garbage that a collector has to find. A few small ones are
// kept, cleared, for the next runs. It is safe for concurrent use.
type memories struct {
	mu   sync.Mutex
	kept []*memory
}

// memory is one. Its bytes beyond open are not accessible.
type memory struct {
	of   *memories
	all  []byte
	open int
	used int // the most that was handed out
}

// Allocate returns a memory that can grow to most bytes.
func (m *memories) Allocate(_, most uint64) experimental.LinearMemory {
	m.mu.Lock()
	for i, kept := range m.kept {
		if uint64(len(kept.all)) == most {
			m.kept = append(m.kept[:i], m.kept[i+1:]...)
			m.mu.Unlock()
			return kept
		}
	}
	m.mu.Unlock()
	all, err := unix.Mmap(-1, 0, int(max(most, 1)), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return &memory{of: m} // which cannot be grown: to the module memory is short
	}
	return &memory{of: m, all: all}
}

// Reallocate makes it so large, and returns nil if that cannot be. It stays where it is.
func (m *memory) Reallocate(size uint64) []byte {
	if size > uint64(len(m.all)) {
		return nil
	}
	if int(size) > m.open {
		if unix.Mprotect(m.all[:size], unix.PROT_READ|unix.PROT_WRITE) != nil {
			return nil
		}
		m.open = int(size)
	}
	m.used = max(m.used, int(size))
	return m.all[:size:size]
}

// Free gives it back. A memory that is kept is cleared first, which nobody waits for.
func (m *memory) Free() {
	if m.all == nil {
		return
	}
	if m.open > keptBytes {
		_ = unix.Munmap(m.all)
		return
	}
	go func() {
		clear(m.all[:m.used])
		m.used = 0
		if !m.of.keep(m) {
			_ = unix.Munmap(m.all)
		}
	}()
}

// keep keeps a memory for the next run, if there is room for it.
func (m *memories) keep(cleared *memory) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.kept) >= keptMemories {
		return false
	}
	m.kept = append(m.kept, cleared)
	return true
}
