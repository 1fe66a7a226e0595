package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
)

// fakeDisk is an api.Disk that remembers what it was asked for.
type fakeDisk struct {
	asked []budget.Request
	gap   budget.Gap
}

func (d *fakeDisk) entries() []budget.Listed {
	long := time.Now().Add(-73 * time.Hour)
	return []budget.Listed{
		{Store: "images", Entry: budget.Entry{ID: "sha256:1", Description: "debian\x1b[31m", Bytes: 5 << 20, Created: long, Uses: 3}},
		{Store: "registry", Entry: budget.Entry{ID: "r", Scope: "group/app (untrusted)", Bytes: 3 << 30, Created: long, InUse: true}},
	}
}

func (d *fakeDisk) Account(context.Context) (budget.Account, error) {
	return budget.Account{
		Stores: []budget.StoreAccount{
			{Name: "logs", Bytes: 1 << 20, Removable: 1 << 19, Entries: 3, OldestUse: time.Now().Add(-73 * time.Hour)},
			{Name: "registry", Bytes: 3 << 30, Error: "cannot\nread"},
		},
		Bytes: 3<<30 + 1<<20, Marks: budget.Marks{Budget: 100 << 30, High: 85 << 30, Low: 70 << 30, Floor: 5 << 30},
		FileSystem: budget.FileSystem{Dir: "/state", Size: 200 << 30, Used: 50 << 30, Free: 150 << 30}, Gap: d.gap,
	}, nil
}

func (d *fakeDisk) Entries(_ context.Context, store, _ string) ([]budget.Listed, error) {
	if store == "nonsense" {
		return nil, fmt.Errorf("%w: %q", budget.ErrNoStore, store)
	}
	return d.entries(), nil
}

func (d *fakeDisk) Prune(_ context.Context, r budget.Request) (budget.Report, error) {
	d.asked = append(d.asked, r)
	return budget.Report{Removed: d.entries()[:1], Freed: 5 << 20, DryRun: r.DryRun, Remaining: 1 << 30}, nil
}

func TestCache(t *testing.T) {
	disk := &fakeDisk{gap: budget.Gap{Since: time.Now(), Tolerance: 64 << 20}}
	s := apitest.Start(t, func(c *api.Config, _ *apitest.Backend) { c.Disk = disk })

	code, out, errs := runnerd(t, s.Socket, "", "cache", "du")
	expect(t, "du", code, 0, out+errs, "logs      1 MiB", "3d ago", "incomplete: cannot read", "total", "above 85 GiB is pruned, to 70 GiB", "50 GiB of 200 GiB are in use", "gap: none")
	disk.gap.Bytes, disk.gap.Large = 9<<30, true
	code, out, errs = runnerd(t, s.Socket, "", "cache", "du")
	expect(t, "du with a gap", code, 0, out+errs, "gap: 9 GiB", "is not accounted")
	code, out, errs = runnerd(t, s.Socket, "", "cache", "du", "-v")
	expect(t, "du -v", code, 0, out+errs, "in use", "group/app (untrusted)", "debian", "3d ago")
	code, out, errs = runnerd(t, s.Socket, "", "cache", "du", "--json")
	expect(t, "du --json", code, 0, out+errs, `"budget": 107374182400`)
	code, out, errs = runnerd(t, s.Socket, "", "cache", "du", "--store", "nonsense")
	expect(t, "no such store", code, 1, out+errs, "no such store")

	code, out, errs = runnerd(t, s.Socket, "", "cache", "prune", "--older-than", "7d", "--store", "images", "--scope", "group/app", "--dry-run")
	expect(t, "dry run", code, 0, out+errs, "would remove 1 entry, about 5 MiB")
	code, out, errs = runnerd(t, s.Socket, "", "cache", "prune", "--to", "20GiB", "-f")
	expect(t, "prune", code, 0, out+errs, "removed 1 entry, 5 MiB", "1 GiB more were to go")
	code, out, errs = runnerd(t, s.Socket, "", "cache", "prune", "--all", "--json")
	expect(t, "prune --json", code, 0, out+errs, `"freed": 5242880`)
	want := []budget.Request{
		{OlderThan: 7 * 24 * time.Hour, Store: "images", Scope: "group/app", DryRun: true}, {To: 20 << 30}, {All: true},
	}
	if !slices.Equal(disk.asked, want) {
		t.Errorf("asked for %+v", disk.asked)
	}
	for _, args := range [][]string{{"--to", "0"}, {"--to", "5GiB", "--all"}, {"--to", "x"}, {"--older-than", "-1h"}, {"x"}} {
		code, out, errs = runnerd(t, s.Socket, "", append([]string{"cache", "prune"}, args...)...)
		expect(t, strings.Join(args, " "), code, 2, out+errs)
	}
	code, out, errs = runnerd(t, filepath.Join(t.TempDir(), "s"), "", "cache", "du")
	expect(t, "unreachable", code, 4, out+errs)
	code, out, errs = runnerd(t, s.Socket, "", "cache", "nonsense")
	expect(t, "unknown command", code, 2, out+errs, "nonsense")
}

func TestCheckBudget(t *testing.T) {
	c := config.Default()
	c.StateDir = t.TempDir()
	if f := checkBudget(t.Context(), c); f.Verdict != ok || !strings.Contains(f.Found, "85%") {
		t.Errorf("%+v", f)
	}
	c.Disk.Budget = config.Share{Bytes: 1 << 60}
	if f := checkBudget(t.Context(), c); f.Verdict != warn {
		t.Errorf("%+v", f)
	}
	c.Disk.Floor = config.Share{Bytes: 1 << 60}
	if f := checkBudget(t.Context(), c); f.Verdict != fail {
		t.Errorf("%+v", f)
	}
}
