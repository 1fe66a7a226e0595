//go:build integration

package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// cached runs a job in /workspace with flags, and returns its output and what runnerd says of its caches, which it says
// to the attached client too.
func (d *daemon) cached(code int, script string, flags ...string) (stdout, notices string) {
	d.t.Helper()
	name := "cached-" + time.Now().Format("150405.000000000")
	args := append([]string{"run", "--name", name, "-w", "/workspace"}, flags...)
	stdout, shown, got := d.run(append(args, "--", "sh", "-c", script)...)
	if got != code {
		d.t.Errorf("%s: exit code %d, not %d: %s", script, got, code, shown)
	}
	log, errs, _ := d.run("logs", d.named(name).ID)
	for line := range strings.Lines(log + errs) {
		if strings.Contains(line, "cache ") || strings.Contains(line, "artifact ") {
			notices += line
			if !strings.Contains(shown, line) || !strings.HasPrefix(line, "runnerd: ") {
				d.t.Errorf("the client was not shown %q, but\n%s", line, shown)
			}
		}
	}
	return strings.TrimSpace(stdout), notices
}

func (d *daemon) named(name string) job {
	d.t.Helper()
	for _, j := range d.jobs() {
		if j.Name == name {
			return j
		}
	}
	d.t.Fatalf("there is no job %s", name)
	return job{}
}

func (d *daemon) said(notices string, words ...string) {
	d.t.Helper()
	for _, w := range words {
		if !strings.Contains(notices, w) {
			d.t.Errorf("%q is not said in:\n%s", w, notices)
		}
	}
}

// TestCache has jobs of one project share a cache, untrusted ones read it and write none that trusted ones see, and
// others see nothing.
func TestCache(t *testing.T) {
	d := startDaemon(t, "")
	const flag, fill = "--cache=key=k,path=deps,path=*.lock", "cat deps/*; mkdir -p deps/sub && echo $0 >deps/sub/f && ln -sf sub/f deps/l && echo x >a.lock; true"
	run := func(word string, flags ...string) (string, string) {
		return d.cached(0, strings.Replace(fill, "$0", word, 1), append([]string{flag, "--project", "p"}, flags...)...)
	}
	if out, shown, code := d.run("run", "--", "true"); code != 0 || out+shown != "" {
		t.Errorf("a job without caches ends with code %d and says %q", code, out+shown)
	}
	out, said := run("trusted-1")
	if out != "" {
		t.Errorf("the first job found %q", out)
	}
	d.said(said, "cache k: miss", "cache k: saved", "3 files")
	out, said = run("trusted-2")
	if out != "trusted-1" {
		t.Errorf("the second job found %q", out)
	}
	d.said(said, "cache k: restored", "3 files from p,", "written by job", "saved")

	out, said = run("untrusted-1", "--untrusted")
	if out != "trusted-2" {
		t.Errorf("an untrusted job found %q", out)
	}
	d.said(said, "restored", "from p, written by", "saved")
	if out, _ = run("trusted-3"); out != "trusted-2" {
		t.Errorf("after an untrusted job a trusted one found %q", out)
	}
	out, said = run("untrusted-2", "--untrusted")
	if out != "untrusted-1" {
		t.Errorf("the second untrusted job found %q", out)
	}
	d.said(said, "from p (untrusted)")
	out, said = d.cached(0, "cat deps/* 2>/dev/null; true", flag, "--project", "q")
	if out != "" {
		t.Errorf("another project's job found %q", out)
	}
	d.said(said, "miss", "not saved: no file matches its paths")

	// Fallbacks, policies, and when.
	out, said = d.cached(0, "cat deps/l", "--project=p", "--cache=key=none,fallback=no,fallback=k,path=deps,policy=pull")
	if out != "trusted-3" || strings.Contains(said, "saved") {
		t.Errorf("%q, %s", out, said)
	}
	d.said(said, "(fallback k)")
	if _, said = d.cached(0, "mkdir d; echo 1 >d/f", "--project=p", "--cache=key=push,path=d,policy=push"); strings.Contains(said, "miss") {
		t.Error(said)
	}
	for _, c := range []struct {
		when  string
		saved bool
	}{{"on_success", false}, {"on_failure", true}, {"always", true}} {
		if _, said = d.cached(3, "mkdir d; echo 1 >d/f; exit 3", "--cache=key=w,path=d,when="+c.when); strings.Contains(said, "saved 0") != c.saved {
			t.Errorf("%s: %s", c.when, said)
		}
	}
	d.want(2, "expected length <= 1024", "run", "--cache=key="+strings.Repeat("x", 2000)+",path=d", "--", "true")
	d.want(2, "key=K and path=P are needed", "run", "--cache=path=d", "--", "true")
	// Paths that lead out are refused, in the job's own sandbox.
	_, said = d.cached(0, "true", "--cache=key=out,path=../etc/passwd")
	d.said(said, "not saved", "not within the working directory")
	// As the job's user.
	_, said = d.cached(0, "id -u", "-u", "1000", "--cache=key=u,path=.")
	d.said(said, "no file matches")
}

// TestCacheDamage damages what is stored, and cuts a save in half: that is a miss, or no entry, and the job goes on.
func TestCacheDamage(t *testing.T) {
	d := startDaemon(t, "cache: {max_entry: 64MiB, max_files: 1000, timeout: 20s}\n")
	const flag = "--cache=key=k,path=deps"
	d.cached(0, "mkdir deps; for i in 1 2 3 4 5 6 7 8; do head -c 3000000 /dev/urandom >deps/$i; done", flag)
	chunk := ""
	var largest int64
	_ = filepath.WalkDir(filepath.Join(d.state, "cache"), func(path string, e fs.DirEntry, err error) error {
		if fi, statErr := os.Stat(path); err == nil && statErr == nil && strings.Contains(path, "/chunks/") && e.Type().IsRegular() && fi.Size() > largest {
			chunk, largest = path, fi.Size()
		}
		return nil
	})
	text, err := os.ReadFile(chunk)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	if err := os.WriteFile(chunk, text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, said := d.cached(0, "ls -A /workspace | wc -l", flag)
	if out != "0" {
		t.Errorf("%s files of a damaged entry were left", out)
	}
	d.said(said, "damaged", "dropped", "miss")
	if _, said = d.cached(0, "true", flag); strings.Contains(said, "damaged") {
		t.Error("the entry was not dropped: ", said)
	}

	// Too much is an error of the save, not of the job.
	_, said = d.cached(0, "mkdir deps; head -c 70M /dev/zero >deps/big", flag)
	d.said(said, "not saved", "more than")
	_, said = d.cached(0, "mkdir deps; cd deps; seq 1100 | xargs touch", flag)
	d.said(said, "not saved", "more than 1000 files")

	// A job that is cancelled while it saves leaves no entry. A slow one: its files are in the way of a FUSE that
	// is none, a stopped archiver.
	name := "stopped"
	started := make(chan struct{})
	go func() {
		defer close(started)
		d.run("run", "--name", name, "-w", "/workspace", "--cache=key=cut,path=deps", "--", "sh", "-c",
			"mkdir deps; head -c 50M /dev/urandom >deps/f; (while :; do for p in /proc/[0-9]*; do if grep -q archive $p/cmdline 2>/dev/null; then kill -STOP ${p#/proc/}; fi; done; done) >/dev/null 2>&1 </dev/null & sleep 0.2; echo go")
	}()
	j := d.await(name, "running")
	time.Sleep(3 * time.Second)
	d.want(0, "", "cancel", j.ID)
	<-started
	_, said = d.cached(0, "true", "--cache=key=cut,path=deps,policy=pull")
	d.said(said, "cache cut: miss")
}

// TestArtifacts keeps files of jobs and fetches them.
func TestArtifacts(t *testing.T) {
	d := startDaemon(t, "")
	name := "artifacts"
	d.want(0, "", "run", "--name", name, "-w", "/workspace", "--artifact=dist,*.txt", "--artifact=path=log,name=log.tar,when=always,keep=1h", "--",
		"sh", "-c", "mkdir -p dist/a log; echo one >dist/a/f; echo two >b.txt; echo three >log/l; ln -s /etc/passwd dist/link")
	id := d.named(name).ID
	list := d.want(0, "", "outputs", id)
	d.said(list, "artifacts.tar", "log.tar")
	to := t.TempDir()
	for range 2 { // fetching does not remove them
		d.want(0, "", "outputs", id, "-o", to)
	}
	for file, want := range map[string]string{"artifacts/dist/a/f": "one\n", "artifacts/b.txt": "two\n", "log/log/l": "three\n"} {
		if got, err := os.ReadFile(filepath.Join(to, file)); string(got) != want {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
	_, said := d.cached(4, "mkdir log; echo x >log/l; exit 4", "--artifact=path=log,when=always", "--artifact=path=log,name=no.tar")
	d.said(said, "artifact artifacts.tar: kept")
	if strings.Contains(said, "no.tar") {
		t.Error(said)
	}
	// An artifact that is not there is a failure, a cache is none.
	_, said = d.cached(1, "true", "--artifact=none")
	d.said(said, "not kept: no file matches")
	// An artifact goes where its job's scope says; another job of the same project does not find it as a cache.
	_, said = d.cached(0, "true", "--cache=key=artifacts.tar,path=x,policy=pull")
	d.said(said, "miss")
}
