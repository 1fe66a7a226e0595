//go:build integration

package integration

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/scope"
)

// actor is a job as a forge would describe it.
type actor struct {
	name   string
	origin string // as --origin takes it
	scope  scope.Scope
}

// actors are the kinds of refs of two projects. Those that are trusted come first: what they write is there when
// an untrusted scope starts.
func actors(t *testing.T) (all []actor) {
	t.Helper()
	for _, ref := range []struct {
		name   string
		origin scope.Origin
		text   string
	}{
		{"protected", scope.Origin{Kind: scope.Branch, Protected: true}, "kind=branch,ref=main,protected"},
		{"tag", scope.Origin{Kind: scope.Tag, Protected: true}, "kind=tag,ref=v1,protected"},
		{"branch", scope.Origin{Kind: scope.Branch}, "kind=branch,ref=topic"},
		{"mr", scope.Origin{Kind: scope.MergeRequest, Protected: true}, "kind=merge_request,ref=main,protected"},
		{"fork", scope.Origin{Kind: scope.Branch, Protected: true, Fork: true}, "kind=branch,ref=main,protected,fork"},
	} {
		for _, project := range []string{"one", "two"} {
			o := ref.origin
			o.Forge, o.Project = "forge.test", project
			s, err := scope.Of(o)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, actor{project + "-" + ref.name, "forge=forge.test,project=" + project + "," + ref.text, s})
		}
	}
	return all
}

// sameForAll is the defence switched off: every actor's jobs are of one scope.
func sameForAll(all []actor) []actor {
	out := slices.Clone(all)
	for i := range out {
		out[i].origin, out[i].scope = all[0].origin, all[0].scope
	}
	return out
}

// TestTrustMatrix has jobs of five kinds of refs of two projects try to read and to write each other's caches:
// the builders' cache mounts and layers, the CI cache, the registry.
func TestTrustMatrix(t *testing.T) {
	d := startDaemon(t, "")
	port := registryPort(t, "10.214.0.1")
	for name, all := range map[string][]actor{"on": actors(t), "off": sameForAll(actors(t))} {
		t.Run(name, func(t *testing.T) {
			t.Run("builder", func(t *testing.T) { tryBuilder(t, d, name, all) })
			t.Run("ci cache", func(t *testing.T) { tryCache(t, d, name, all) })
			t.Run("registry", func(t *testing.T) { tryRegistry(t, d, name, all, port) })
		})
	}
}

// judge compares what each reader saw of each writer with what it may read.
func judge(t *testing.T, what string, all []actor, saw map[string][]string) {
	t.Helper()
	legal, illegal := 0, 0
	for _, reader := range all {
		for _, writer := range all {
			got, want := slices.Contains(saw[reader.name], writer.name), reader.scope.MayRead(writer.scope)
			if got != want {
				t.Errorf("%s: %s (%s) sees what %s (%s) wrote: %v, want %v", what, reader.name, reader.scope, writer.name, writer.scope, got, want)
			}
			if want {
				legal++
			} else {
				illegal++
			}
		}
	}
	t.Logf("%s: %d reads that are allowed, %d that are not", what, legal, illegal)
}

// tryBuilder has every actor leave a file in one cache mount and one in a layer, and say whose files it finds.
func tryBuilder(t *testing.T, d *daemon, round string, all []actor) {
	dir := files(t, "Dockerfile", `FROM debian:bookworm-slim
ARG WHO ROUND LOOK
RUN --mount=type=cache,id=matrix-$ROUND,target=/c echo "$LOOK finds: $(ls /c | tr '\n' ' ')." && touch /c/$WHO
`)
	build := func(a actor, look string) []string {
		t.Helper()
		_, stderr, code := d.run("build", "--progress", "plain", "--origin", a.origin, "--build-arg", "WHO="+a.name, "--build-arg", "ROUND="+round, "--build-arg", "LOOK="+look, dir)
		_, found, ok := strings.Cut(stderr, " "+look+" finds: ")
		if code != 0 || !ok {
			t.Fatalf("%s: exit code %d: %s", a.name, code, stderr)
		}
		found, _, _ = strings.Cut(found, ".")
		return strings.Fields(found)
	}
	for _, a := range all {
		build(a, "first")
	}
	saw := map[string][]string{}
	for _, a := range all {
		saw[a.name] = build(a, "second")
	}
	judge(t, "cache mount", all, saw)
}

// tryCache has every actor save an entry of its own and one that all of them name alike, and restore them all.
func tryCache(t *testing.T, d *daemon, round string, all []actor) {
	run := func(a actor, script string, caches ...string) string {
		t.Helper()
		args := []string{"run", "-w", "/workspace", "--origin", a.origin}
		for _, c := range caches {
			args = append(args, "--cache", c)
		}
		stdout, stderr, code := d.run(append(args, "--", "sh", "-c", script)...)
		if code != 0 {
			t.Fatalf("%s: exit code %d: %s", a.name, code, stderr)
		}
		return stdout
	}
	key := func(name string) string { return "matrix-" + round + "-" + name }
	lastOf := map[scope.Scope]string{} // who wrote the common entry last
	for _, a := range all {
		run(a, "mkdir "+a.name+" common; touch "+a.name+"/f; echo "+a.name+" >common/who",
			"key="+key(a.name)+",path="+a.name+",policy=push", "key="+key("common")+",path=common,policy=push")
		lastOf[a.scope] = a.name
	}
	saw := map[string][]string{}
	for _, a := range all {
		caches := []string{"key=" + key("common") + ",path=common,policy=pull"}
		for _, w := range all {
			caches = append(caches, "key="+key(w.name)+",path="+w.name+",policy=pull")
		}
		stdout := run(a, "ls; echo common: $(cat common/who)", caches...)
		saw[a.name] = strings.Fields(stdout)
		if want := "common: " + lastOf[a.scope] + "\n"; !strings.HasSuffix(stdout, want) {
			t.Errorf("%s finds of the entry that everybody writes %q, want %q", a.name, stdout, want)
		}
	}
	judge(t, "CI cache", all, saw)

	// Keys are not paths: an untrusted job cannot name an entry of another scope.
	last := all[len(all)-1]
	for owner, key := range map[string]string{"trusted": all[0].scope.ID(), "other": all[1].scope.ID()} {
		for _, form := range []string{"../%s/x", "/./%s/x", "%s/x", "..%%2f%s/x"} {
			run(last, "mkdir -p p; echo poison >p/f", "key="+fmt.Sprintf(form, key)+",path=p,policy=push")
		}
		if out := run(all[0], "ls", "key=x,path=p,policy=pull"); strings.Contains(out, "p\n") {
			t.Errorf("a hostile key has written an entry of the %s scope", owner)
		}
	}
}

// above reports whether a is trusted in the project whose untrusted jobs owner is one of. Such a job may name what
// those have pushed.
func above(a, owner actor) bool {
	return a.scope.SameProject(owner.scope) && a.scope.Trust == scope.Trusted && owner.scope.Trust != scope.Trusted
}

// tryRegistry has every actor push to a repository of its own, then try to push to everybody's, and to pull.
func tryRegistry(t *testing.T, d *daemon, round string, all []actor, port string) {
	dir := files(t, "Dockerfile", "FROM scratch\nARG WHO\nLABEL who=$WHO\nCOPY Dockerfile /\n")
	repository := func(a actor) string { return "matrix/" + round + "/" + a.name }
	for _, a := range all {
		if _, stderr, code := d.run("build", "--push", "--origin", a.origin, "--build-arg", "WHO="+a.name, "-t", "registry.runnerd.internal/"+repository(a)+":1", dir); code != 0 {
			t.Fatalf("%s: exit code %d: %s", a.name, code, stderr)
		}
	}
	// bash alone speaks HTTP well enough.
	script := func(a actor) string {
		text := strings.Builder{}
		text.WriteString("ask() { exec 3<>/dev/tcp/registry.runnerd.internal/" + port + "; printf '%s %s HTTP/1.0\\r\\nHost: r\\r\\nAccept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json\\r\\nContent-Length: 0\\r\\n\\r\\n' $1 $2 >&3; read -r _ code _ <&3; echo $3 $4 $code; }\n")
		for _, owner := range all {
			fmt.Fprintf(&text, "ask GET /v2/%s/manifests/1 read %s\n", repository(owner), owner.name)
			// A trusted job takes over what untrusted ones have pushed: see TestRegistryByScope.
			if !above(a, owner) {
				fmt.Fprintf(&text, "ask POST /v2/%s/blobs/uploads/ write %s\n", repository(owner), owner.name)
			}
		}
		text.WriteString("ask GET /v2/library/debian/manifests/bookworm-slim read base; ask POST /v2/library/debian/blobs/uploads/ write base\n")
		return text.String()
	}
	codes := map[string]int{}
	for _, a := range all {
		stdout, stderr, code := d.run("run", "--origin", a.origin, "--", "bash", "-c", script(a))
		if code != 0 {
			t.Fatalf("%s: exit code %d: %s", a.name, code, stderr)
		}
		for line := range strings.Lines(stdout) {
			f := strings.Fields(line)
			if len(f) != 3 {
				t.Fatalf("%s: %q", a.name, line)
			}
			codes[f[2]]++
			i := slices.IndexFunc(all, func(b actor) bool { return b.name == f[1] })
			want := map[string]bool{"read": true, "write": false}[f[0]] // of a base image
			if i >= 0 {
				owner := all[i]
				want = map[string]bool{"read": a.scope.MayRead(owner.scope) || above(a, owner), "write": a.scope.MayWrite(owner.scope)}[f[0]]
			}
			if ok := f[2] == "200" || f[2] == "202"; ok != want {
				t.Errorf("registry: %s (%s) may %s the repository of %s: status %s, want %v", a.name, a.scope, f[0], f[1], f[2], want)
			}
		}
	}
	t.Logf("registry: statuses %v", slices.Collect(maps.Keys(codes)))
}
