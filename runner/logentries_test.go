package runner

import "testing"

func TestLogEntries(t *testing.T) {
	logs, err := NewLogStore(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	open := map[string]*Log{}
	for _, id := range []string{"ended", "runs"} {
		if open[id], err = logs.Open(id); err != nil {
			t.Fatal(err)
		}
		if _, err := open[id].Stream(Stdout).Write(make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if err := open["ended"].Close(); err != nil {
		t.Fatal(err)
	}
	store := logs.Budget()
	usage, err := store.Usage(t.Context())
	if err != nil || usage < 200<<10 || usage > 1<<20 {
		t.Error(usage, err)
	}
	entries, err := store.Entries(t.Context())
	if err != nil || len(entries) != 2 || entries[0].ID != "ended" || entries[0].InUse || !entries[1].InUse || entries[0].Bytes < 100<<10 {
		t.Errorf("%v %+v", err, entries)
	}
	freed, err := store.Remove(t.Context(), []string{"ended", "runs", "gone", "ended"})
	if err != nil || freed != entries[0].Bytes {
		t.Error(freed, err)
	}
	if freed, err = store.Remove(t.Context(), []string{"../x"}); err == nil || freed != 0 {
		t.Error("a job's id leads out of the directory")
	}
	if err := open["runs"].Close(); err != nil {
		t.Fatal(err)
	}
	if entries, err = store.Entries(t.Context()); err != nil || len(entries) != 1 || entries[0].InUse {
		t.Errorf("%v %+v", err, entries)
	}
}
