package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner/gitlab"
)

func TestDoctor(t *testing.T) {
	all := []check{
		{"fine", func(context.Context, *config.Config) finding { return good("all %d", 3) }},
		{"so-so", func(context.Context, *config.Config) finding { return bad(warn, "do this\nand that", "not all") }},
		{"broken", func(context.Context, *config.Config) finding { panic("ouch") }},
	}
	var out, errs buffer
	a := &app{stdout: &out, stderr: &errs}
	if code := exitCode(a.doctor(t.Context(), config.Default(), all[:2], false)); code != 0 {
		t.Error(code)
	}
	const want = "✓ fine    all 3\n! so-so   not all\n          → do this\n          → and that\n✗ broken  the check itself failed: ouch\n          → please report this\n\n1 ok, 1 warnings, 1 failures\n"
	out = buffer{}
	if code := exitCode(a.doctor(t.Context(), config.Default(), all, false)); code != 1 || out.String() != want {
		t.Errorf("%d\n%q\n%q", code, out.String(), want)
	}
	out = buffer{}
	var findings []finding
	if code := exitCode(a.doctor(t.Context(), config.Default(), all, true)); code != 1 {
		t.Error(code)
	}
	if err := json.Unmarshal([]byte(out.String()), &findings); err != nil || len(findings) != 3 || findings[1].Mend == "" || findings[2].Verdict != fail {
		t.Error(findings, err)
	}
}

// TestDoctorHere runs every check on this machine: whatever they find, they say what and how to mend it.
func TestDoctorHere(t *testing.T) {
	c := config.Default()
	c.StateDir = t.TempDir()
	c.Resolve()
	for _, k := range checks() {
		f := examine(t.Context(), c, k)
		if f.Check != k.name || f.Found == "" || f.Verdict != ok && f.Mend == "" || !slices.Contains([]verdict{ok, warn, fail}, f.Verdict) {
			t.Errorf("%+v", f)
		}
		t.Logf("%s %s: %s", f.Verdict, f.Check, f.Found)
	}
}

func TestDoctorAsksForges(t *testing.T) {
	f := newFakeForge(t)
	c := config.Default()
	c.StateDir = t.TempDir()
	if k := checkRunners(t.Context(), c); k.Verdict != ok {
		t.Errorf("without any: %+v", k)
	}
	rs, err := gitlab.OpenRegistrations(runnersDir(c.StateDir))
	if err != nil {
		t.Fatal(err)
	}
	add := func(r gitlab.Registration) {
		t.Helper()
		if err := rs.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	add(gitlab.Registration{Name: "good", URL: f.URL, Token: ownToken})
	if k := checkRunners(t.Context(), c); k.Verdict != ok || !f.called("HEAD version") {
		t.Errorf("one that is there: %+v", k)
	}
	add(gitlab.Registration{Name: "away", URL: "http://127.0.0.1:1", Token: ownToken})
	add(gitlab.Registration{Name: "old", URL: f.URL, Token: ownToken + "-old", TokenExpires: time.Now().Add(-time.Hour)})
	k := checkRunners(t.Context(), c)
	if k.Verdict != warn || !strings.Contains(k.Found, "away: ") || !strings.Contains(k.Found, "old: its token has expired") || strings.Contains(k.Found, "good") || strings.Count(k.Mend, "\n") != 1 {
		t.Errorf("%+v", k)
	}
	f.answers(502)
	if k := checkRunners(t.Context(), c); k.Verdict != warn || !strings.Contains(k.Found, "good: "+f.URL+"/api/v4/ answers 502") {
		t.Errorf("%+v", k)
	}
	if err := os.WriteFile(filepath.Join(runnersDir(c.StateDir), "bad.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if k := checkRunners(t.Context(), c); k.Verdict != fail || !strings.Contains(k.Found, "bad.json") {
		t.Errorf("%+v", k)
	}
}

func TestMissingModules(t *testing.T) {
	builtin := "kernel/net/bridge/bridge.ko\nkernel/fs/overlayfs/overlay.ko\nkernel/net/netfilter/nf-tables.ko\n"
	loaded := "veth 12345 0 - Live 0x0\nnf_nat 1 1 x, Live 0x0\nxt_MASQUERADE 1 1 - Live 0x0\n"
	want := []string{"br_netfilter", "nft_chain_nat", "nft_compat", "nft_ct", "nft_masq", "xt_addrtype", "xt_conntrack", "xt_nat", "xt_tcpudp"}
	if got := missingModules(builtin, loaded); !slices.Equal(got, want) {
		t.Error(got)
	}
}

func TestNameServers(t *testing.T) {
	reachable, all := nameServers("# x\nsearch a\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.0.0.2\n")
	if len(all) != 3 || !slices.Equal(reachable, []string{"10.0.0.2"}) {
		t.Error(reachable, all)
	}
}
