//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnerd/runnerd/ledger"
	"github.com/runnerd/runnerd/scope"
)

// startOtherDaemon starts a daemon that can run beside that of startDaemon. What there is of that one's must be there
// by now.
func startOtherDaemon(t *testing.T, config string) *daemon {
	t.Helper()
	bin, err := filepath.Abs("../bin/runnerd")
	if err != nil {
		t.Fatal(err)
	}
	state := stateDir(t)
	write(t, state, "runnerd.yaml", "network: {subnet: 10.218.0.0/16}\nuid_range: {first: 1744830464, count: 64}\nregistry: {address: \":0\"}\ndrain: 2s\n"+config)
	d := newDaemon(t, bin, state, "--config", filepath.Join(state, "runnerd.yaml"))
	d.start()
	t.Cleanup(func() {
		d.stop(syscall.SIGTERM)
		d.nothingLeft()
	})
	return d
}

// TestShare has two daemons share their cache through a registry, as two machines would.
func TestShare(t *testing.T) {
	const password = "c0rrect-horse-battery"
	address := privateRegistry(t, "farm", password)
	secret := files(t, "password", password+"\n")
	config := fmt.Sprintf("builder: {insecure_registries: [%q], share: {ref: \"%s/cache\", username: farm, password_file: %q}}\n", address, address, filepath.Join(secret, "password"))
	dear := files(t, "Dockerfile", "FROM debian:bookworm-slim AS b\nCOPY a /\nRUN sleep 4; cat /proc/sys/kernel/random/uuid >/id\nFROM scratch\nCOPY --from=b /id /\n", "a", "share")
	cheap := files(t, "cheap.Dockerfile", "FROM debian:bookworm-slim AS b\nRUN cat /proc/sys/kernel/random/uuid >/id\nFROM scratch\nCOPY --from=b /id /\n")

	one := startDaemon(t, config)
	untrusted, _ := one.build(dear, "--untrusted")
	if e := one.explain(untrusted); len(e.Exports) > 0 {
		t.Errorf("an untrusted job decides on an export: %+v", e.Exports)
	}
	job, value := one.build(dear)
	var x ledger.Export
	for deadline := time.Now().Add(time.Minute); x.Took == 0 && x.Error == "" && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if exports := one.explain(job).Exports; len(exports) == 1 {
			x = exports[0]
		}
	}
	if !x.Pays || x.Took == 0 || x.Spent < 4 || x.Bytes <= 0 {
		t.Fatalf("the export: %+v", x)
	}
	t.Log(x.Sentence())
	if log := one.want(0, "", "logs", job); !strings.Contains(one.log.String()+log, "is exported to "+address) {
		_, stderr, _ := one.run("logs", job)
		if !strings.Contains(stderr, "is exported to "+address) {
			t.Errorf("the log does not tell: %s %s", log, stderr)
		}
	}
	again, _ := one.build(dear)
	if e := one.explain(again); len(e.Exports) > 0 {
		t.Errorf("a cached build is exported: %+v", e.Exports)
	}
	poor, _ := one.build(cheap, "-f", "cheap.Dockerfile")
	if e := one.explain(poor); len(e.Exports) != 1 || e.Exports[0].Pays || e.Exports[0].Took > 0 {
		t.Errorf("a cheap build: %+v", e.Exports)
	} else {
		t.Log(e.Exports[0].Sentence())
	}
	of := scope.Scope{Forge: scope.Local, Project: scope.Default, Trust: scope.Trusted}
	below := of
	below.Trust = scope.Untrusted
	if n, m := tags(t, address, "cache/"+of.ID(), "farm", password), tags(t, address, "cache/"+below.ID(), "farm", password); n != 1 || m != 0 {
		t.Errorf("the registry has %d tags of the trusted scope, want 1, and %d of the untrusted one, want none", n, m)
	}
	if _, stderr, code := one.run("build", cheap, "-f", "cheap.Dockerfile", "--untrusted", "--cache-to", "type=registry,ref="+address+"/cache/"+of.ID()+":x"); code == 0 || !strings.Contains(stderr, "no build may name") {
		t.Errorf("a build that writes the shared cache itself: exit code %d: %s", code, stderr)
	}

	other := startOtherDaemon(t, config)
	for _, flags := range [][]string{nil, {"--untrusted"}} {
		copied, same := other.build(dear, flags...)
		l := line(t, other.explain(copied), "RUN sleep")
		if same != value || l.Result != ledger.Hit || !strings.Contains(l.Why, address+"/cache") {
			t.Errorf("%v: the other machine has %q, not %q: %+v", flags, same, value, l)
		}
	}
	copied, _ := other.build(dear)
	stdout := other.want(0, "", "cache", "revoke", fmt.Sprintf("%s:%d", copied, line(t, other.explain(copied), "RUN sleep").N))
	t.Log(stdout)
	for _, flags := range [][]string{nil, {"--untrusted"}} {
		if _, anew := other.build(dear, flags...); anew == value {
			t.Errorf("%v: after the revocation the other machine still has %q", flags, anew)
		}
	}
	if apart, own := other.build(dear, "--project", "another"); own == value {
		t.Errorf("another project has read the cache: %+v", other.explain(apart))
	}
}

// tags counts the tags of a registry's repository.
func tags(t *testing.T, address, repository, user, password string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/v2/"+repository+"/tags/list", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(user, password)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var list struct{ Tags []string }
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	return len(list.Tags)
}
