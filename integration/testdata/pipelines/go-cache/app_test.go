package app

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCount(t *testing.T) {
	want := map[string]int{"a": 2, "b": 1}
	if diff := cmp.Diff(want, Count("a b A")); diff != "" {
		t.Error(diff)
	}
}
