package buildkit

import (
	"slices"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/runnerd/runnerd/budget"
)

func TestStore(t *testing.T) {
	m := newMachine(t)
	cfg := WorkersConfig{Open: m.open, IdleTimeout: 20 * time.Millisecond, Disks: m, Dir: t.TempDir()}
	ws := NewWorkers(cfg)
	t.Cleanup(ws.Close)
	at := time.Unix(1700000000, 0).UTC()
	record := func(id string, parents ...string) *controlapi.UsageRecord {
		return &controlapi.UsageRecord{ID: id, Size: 10, Parents: parents, UsageCount: 3, CreatedAt: timestamppb.New(at), LastUsedAt: timestamppb.New(at.Add(time.Hour)), Description: "RUN x"}
	}
	id := trusted("p").ID()
	entries := func(ws *Workers) []budget.Entry {
		t.Helper()
		all, err := ws.Entries(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(all, func(a, b budget.Entry) int { return int(a.ID[len(a.ID)-1]) - int(b.ID[len(b.ID)-1]) })
		return all
	}

	l := take(t, ws, trusted("p"))
	m.set(func() { m.cached["a"], m.cached["b"] = record("a"), record("b", "a") })
	all := entries(ws)
	if len(all) != 2 || all[0].ID != id+"/a" || !slices.Equal(all[1].Needs, []string{id + "/a"}) || all[1].Scope != "p" ||
		all[1].Uses != 3 || !all[1].Created.Equal(at) || !all[1].LastUsed.Equal(at.Add(time.Hour)) || all[1].Bytes != 10 || all[1].InUse {
		t.Errorf("of a running worker: %+v", all)
	}
	clone := take(t, ws, untrusted("p"))
	if all := entries(ws); !all[0].InUse {
		t.Error("what a busy clone stands on can be removed")
	}
	if freed, err := ws.Remove(t.Context(), []string{id + "/b"}); freed != 0 || err != nil {
		t.Errorf("what a busy clone stands on: %d bytes, %v", freed, err)
	}
	_ = clone.Close(t.Context())
	if freed, err := ws.Remove(t.Context(), []string{id + "/b", id + "/gone", "nonsense"}); freed != 10 || err == nil || len(m.cached) != 1 {
		t.Errorf("removed %d bytes, %v; left %v", freed, err, m.cached)
	}
	if freed, err := ws.Remove(t.Context(), []string{id + "/disk"}); freed != 0 || err != nil {
		t.Errorf("the disk of a running worker: %d bytes, %v", freed, err)
	}
	_ = l.Close(t.Context())
	for range 5 { // looking at it does not keep it from being idle
		entries(ws)
		time.Sleep(10 * time.Millisecond)
	}
	eventually(t, "an idle worker stops", func() bool { live, _ := m.count(); return live == 0 })

	ws.Close()
	ws = NewWorkers(cfg) // after a restart
	t.Cleanup(ws.Close)
	all = entries(ws)
	if len(all) != 1 || all[0].ID != id+"/disk" || all[0].Scope != "p" || all[0].Bytes != 1000 || all[0].Uses != 1 || time.Since(all[0].Created) > time.Minute || all[0].InUse {
		t.Errorf("of an idle one: %+v", all)
	}
	if used, err := ws.Usage(t.Context()); used != 1000 || err != nil || ws.Name() != "builders" {
		t.Errorf("%d bytes are used, %v", used, err)
	}
	for _, want := range []int64{1000, 0} {
		if freed, err := ws.Remove(t.Context(), []string{id + "/disk"}); freed != want || err != nil {
			t.Errorf("removed %d bytes, not %d: %v", freed, want, err)
		}
	}
	if len(entries(ws)) != 0 {
		t.Error("a removed disk is listed")
	}
}
