package engine

import (
	"slices"
	"testing"
	"time"
)

// TestMemories holds that a memory that is used again shows nothing of its last use, and grows no further than it may.
func TestMemories(t *testing.T) {
	var m memories
	const most = 1 << 20
	first := m.Allocate(0, most)
	text := first.Reallocate(1 << 16)
	copy(text, "secret")
	if grown := first.Reallocate(1 << 17); &grown[0] != &text[0] || string(grown[:6]) != "secret" || len(grown) != 1<<17 {
		t.Error("a memory that grew is another one")
	}
	if first.Reallocate(most+1) != nil {
		t.Error("it grew beyond its limit")
	}
	first.Free()
	kept := func() int {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.kept)
	}
	for deadline := time.Now().Add(10 * time.Second); kept() == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	second := m.Allocate(0, most)
	if second != first {
		t.Fatal("a memory was not kept")
	}
	if again := second.Reallocate(1 << 17); slices.ContainsFunc(again, func(b byte) bool { return b != 0 }) {
		t.Error("a memory shows what the last run wrote")
	}
	if other := m.Allocate(0, 2*most); other == first {
		t.Error("a memory was used twice at once")
	}
}
