package main

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/cache"
	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner"
	gitlabjob "github.com/runnerd/runnerd/runner/gitlab/job"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// keptForge is a forge that keeps one artifact for each job, and fails as it is told to.
type keptForge struct {
	options  gitlabjob.ArtifactOptions
	uploaded []byte
	tries    int   // of an upload, of which the last one succeeds; 0: 1
	status   int   // that it answers; 0: all is well
	cut      int   // how many downloads break off
	err      error // that has no status
}

var errStatus = errors.New("the forge says no")

func (f *keptForge) UploadArtifact(_ context.Context, o gitlabjob.ArtifactOptions, body func(io.Writer) error) error {
	f.options = o
	for try := max(f.tries, 1); try > 0; try-- {
		var got bytes.Buffer
		var w io.Writer = &got
		if try > 1 || f.status != 0 {
			w = &brokenWriter{left: 100}
		}
		err := body(w)
		if broken, ok := w.(*brokenWriter); ok && broken.left < 0 {
			err = nil
		}
		if err != nil {
			return err
		}
		f.uploaded = got.Bytes()
	}
	if f.status != 0 || f.err != nil {
		return fmt.Errorf("upload: %w", errors.Join(f.err, errStatus))
	}
	return nil
}

// brokenWriter is a connection that breaks.
type brokenWriter struct{ left int }

func (b *brokenWriter) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func (f *keptForge) DownloadArtifact(_ context.Context, _ spec.Dependency, w io.Writer) error {
	if f.status != 0 {
		return fmt.Errorf("download: %w", errStatus)
	}
	if f.cut > 0 {
		f.cut--
		_, _ = w.Write(f.uploaded[:len(f.uploaded)/2])
		return io.ErrUnexpectedEOF
	}
	_, err := w.Write(f.uploaded)
	return err
}

func (f *keptForge) Status(err error) int {
	if errors.Is(err, errStatus) {
		return f.status
	}
	return 0
}

// gitHost is the helper's container: git, in the same directory.
type gitHost struct{ h *localHost }

func (g gitHost) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	cmd := exec.CommandContext(ctx, p.Args[0], p.Args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = g.h.dir, p.Stdout, p.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return sandbox.Exit{Code: exit.ExitCode()}, nil
	}
	return sandbox.Exit{}, err
}

type keptVars map[string]string

func (v keptVars) Get(key string) string     { return v[key] }
func (v keptVars) Expand(text string) string { return os.Expand(text, v.Get) }

// keptBench is a job of GitLab's on this machine, with a real store.
type keptBench struct {
	*testing.T
	gitlabjob.Kept
	host  *localHost
	forge *keptForge
	vars  keptVars
	store *cache.Store
	uses  *noted
	said  []string
}

func newKeptBench(t *testing.T) *keptBench {
	t.Helper()
	store, err := cache.Open(t.Context(), cache.Config{Dir: filepath.Join(t.TempDir(), "cache")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	b := &keptBench{T: t, host: &localHost{dir: t.TempDir()}, forge: &keptForge{}, vars: keptVars{"NAME": "name"}, store: store, uses: &noted{}}
	b.in(scope.Trusted)
	return b
}

// in makes it a job of a trust.
func (b *keptBench) in(trust scope.Trust) {
	limits := config.Cache{MaxEntry: 1 << 20, MaxFiles: 100, Timeout: config.Duration(20 * time.Second)}
	r := runner.Request{ID: "gitlab-7-abcd", Scope: scope.Scope{Forge: "gitlab.example.com", Project: "g/p", Trust: trust}}
	b.Kept = gitlabjob.Kept{Archiver: newArchiver(limits), Caches: newGitLabCaches(b.store, b.uses)(r), CacheTimeout: time.Duration(limits.Timeout)}
	b.On, b.Helper, b.Dir, b.JobID, b.JobName, b.Ref = b.host, gitHost{b.host}, b.host.dir, 7, "job", "main"
	b.Variables, b.Forge = b.vars, b.forge
	b.Say = func(line string) { b.said = append(b.said, line) }
}

func (b *keptBench) write(files ...string) {
	b.T.Helper()
	for i := 0; i < len(files); i += 2 {
		name := filepath.Join(b.host.dir, files[i])
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		if err == nil {
			err = os.WriteFile(name, []byte(files[i+1]), 0o644)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// holds are the names and contents of what is there.
func (b *keptBench) holds(want string) {
	b.T.Helper()
	var all []string
	_ = filepath.WalkDir(b.host.dir, func(name string, d os.DirEntry, _ error) error {
		if d.IsDir() && d.Name() == ".git" {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			text, _ := os.ReadFile(name)
			rel, _ := filepath.Rel(b.host.dir, name)
			all = append(all, rel+"="+string(text))
		}
		return nil
	})
	if got := strings.Join(all, " "); got != want {
		b.T.Errorf("there is %q, not %q", got, want)
	}
}

// clear begins anew in an empty directory.
func (b *keptBench) clear() {
	b.host.dir = b.TempDir()
	b.Dir, b.said = b.host.dir, nil
}

// says holds what the trace has got since it was last asked, without colours and padding.
func (b *keptBench) says(want ...string) {
	b.T.Helper()
	plain := regexp.MustCompile(`\x1b\[[0-9;]*m| +$`)
	var got []string
	for _, line := range b.said {
		line = strings.ReplaceAll(plain.ReplaceAllString(line, ""), b.host.dir, "DIR")
		line = regexp.MustCompile(` {2,}`).ReplaceAllString(line, "  ")
		line = regexp.MustCompile(`written by job \S+`).ReplaceAllString(line, "by JOB")
		got = append(got, strings.TrimSpace(line))
	}
	b.said = nil
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		b.T.Errorf("it says\n%s\nnot\n%s", g, w)
	}
}

func (b *keptBench) must(err error) {
	b.T.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// fails holds that an error is the job's.
func (b *keptBench) fails(err error, text string) {
	b.T.Helper()
	var failed *gitlabjob.ArtifactError
	if !errors.As(err, &failed) || !strings.Contains(err.Error(), text) {
		b.T.Errorf("%v, not %s", err, text)
	}
}

func TestGitLabCache(t *testing.T) {
	b := newKeptBench(t)
	c := spec.Cache{Key: "$NAME/../k", Paths: []string{"deps/", "**/*.lock", "../x", "", "none"}}
	b.must(b.RestoreCache(t.Context(), c))
	b.says(`cache key "name/../k" sanitized to "k"`, "Checking cache for k...", "WARNING: Cache file does not exist", "Failed to extract cache")
	b.write("deps/a", "1", "deps/b/c", "2", "x/y.lock", "3", "z", "4")
	b.must(b.SaveCache(t.Context(), c))
	b.says(`cache key "name/../k" sanitized to "k"`, "Creating cache k...", "deps/: found 4 matching artifact files and directories",
		"**/*.lock: found 1 matching artifact files and directories",
		"WARNING: processPath: artifact path is not a subpath of project directory: ../x", "WARNING: No matching files. Path is empty.",
		"WARNING: none: no matching files. Ensure that the artifact path is relative to the working directory (DIR)", "0.0 MiB (0.0 MiB new)", "Created cache")
	b.clear()
	b.must(b.RestoreCache(t.Context(), spec.Cache{Key: "k", Paths: []string{"deps"}}))
	b.says("Checking cache for k...", "3 files, 0.0 MiB from gitlab.example.com/g/p, by JOB", "Successfully extracted cache")
	b.holds("deps/a=1 deps/b/c=2 x/y.lock=3")
	if len(b.uses.reads) != 1 || len(b.uses.writes) != 1 || !strings.HasSuffix(b.uses.reads[0], " gitlab-7-abcd") {
		t.Errorf("%+v", b.uses)
	}

	// Policies, fallbacks, keys that are none.
	b.clear()
	b.vars["POLICY"], b.vars["CACHE_FALLBACK_KEY"] = "pull", "k"
	b.must(b.SaveCache(t.Context(), spec.Cache{Key: "k", Policy: "$POLICY", Paths: []string{"x"}}))
	b.must(b.RestoreCache(t.Context(), spec.Cache{Key: "k", Policy: "push", Paths: []string{"x"}}))
	b.must(b.RestoreCache(t.Context(), spec.Cache{Key: "none", FallbackKeys: []string{"", " / ", "$NAME-2"}, Paths: []string{"x"}}))
	b.says("Not uploading cache k due to policy", "Not downloading cache k due to policy",
		`cache key " / " could not be sanitized`, "Skipping cache extraction due to empty cache key",
		"Checking cache for none...", "WARNING: Cache file does not exist", "Failed to extract cache",
		"Checking cache for name-2...", "WARNING: Cache file does not exist", "Failed to extract cache",
		"Checking cache for k...", "3 files, 0.0 MiB from gitlab.example.com/g/p, by JOB", "Successfully extracted cache")
	b.vars["CACHE_FALLBACK_KEY"] = "k-protected. "
	b.must(b.RestoreCache(t.Context(), spec.Cache{Paths: []string{"x"}}))
	b.says(`CACHE_FALLBACK_KEY "k-protected. " not allowed to end in "-protected"`, "Checking cache for job/main...",
		"WARNING: Cache file does not exist", "Failed to extract cache")
	delete(b.vars, "CACHE_FALLBACK_KEY")
	for _, key := range []string{"..", "/", `\..\`} {
		b.must(b.RestoreCache(t.Context(), spec.Cache{Key: key, Paths: []string{"x"}}))
		b.must(b.SaveCache(t.Context(), spec.Cache{Key: key, Paths: []string{"x"}}))
	}
	b.said = nil
	for _, key := range []string{"a\x00b", strings.Repeat("x", 2000), "\xff"} {
		b.write("f", "1")
		b.must(b.SaveCache(t.Context(), spec.Cache{Key: key, Paths: []string{"f"}}))
		if said := strings.Join(b.said, "\n"); !strings.Contains(said, "not a cache key") || !strings.Contains(said, "Failed to create cache") {
			t.Error(said)
		}
		b.said = nil
	}
	if err := b.SaveCache(t.Context(), spec.Cache{Key: "k", Policy: "both"}); err == nil {
		t.Error("an unknown policy")
	}

	// Nothing, too much.
	b.clear()
	b.must(b.SaveCache(t.Context(), spec.Cache{Key: "empty", Paths: []string{"none"}}))
	b.says("Creating cache empty...", "WARNING: none: no matching files. Ensure that the artifact path is relative to the working directory (DIR)", "WARNING: No files to cache.", "Created cache")
	b.write("big", strings.Repeat("x", 2<<20))
	b.must(b.SaveCache(t.Context(), spec.Cache{Key: "big", Paths: []string{"big"}}))
	b.says("Creating cache big...", "big: found 1 matching artifact files and directories", "FATAL: more than 1048576 bytes", "Failed to create cache")
}

// TestGitLabCacheScopes holds that what protected branches save others read, and not the other way round.
func TestGitLabCacheScopes(t *testing.T) {
	b := newKeptBench(t)
	c := spec.Cache{Key: "k", Paths: []string{"f"}}
	b.write("f", "trusted")
	b.must(b.SaveCache(t.Context(), c))
	b.in(scope.Untrusted)
	b.clear()
	b.must(b.RestoreCache(t.Context(), c))
	b.holds("f=trusted")
	b.write("f", "poison")
	b.must(b.SaveCache(t.Context(), c))
	b.in(scope.Trusted)
	b.clear()
	b.must(b.RestoreCache(t.Context(), c))
	b.holds("f=trusted")
}

// TestGitLabCacheBroken holds that a cache that cannot be extracted leaves all as it was.
func TestGitLabCacheBroken(t *testing.T) {
	b := newKeptBench(t)
	c := spec.Cache{Key: "k", Paths: []string{"a", "d"}}
	b.write("a", "cached", "d/x", "cached")
	b.must(b.SaveCache(t.Context(), c))
	b.clear()
	b.write("a", "mine", "d/x/in the way", "mine")
	b.must(b.RestoreCache(t.Context(), c))
	if said := strings.Join(b.said, "\n"); !strings.Contains(said, "directory not empty") || !strings.Contains(said, "Failed to extract cache") {
		t.Error(said)
	}
	b.holds("a=mine d/x/in the way=mine")
}

func TestGitLabUntracked(t *testing.T) {
	b := newKeptBench(t)
	b.write("tracked", "1", ".gitignore", "*.o", "new", "2", "a.o", "3", "dir/f", "4")
	for _, args := range [][]string{{"init", "-q"}, {"add", "tracked", ".gitignore"}} {
		if out, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", b.host.dir}, args...)...).CombinedOutput(); err != nil {
			t.Fatal(string(out), err)
		}
	}
	// The repository names a program that git would run; it must not.
	hook := filepath.Join(t.TempDir(), "hook")
	b.must(os.WriteFile(hook, []byte("#!/bin/sh\ntouch "+hook+".ran\n"), 0o755))
	if err := exec.CommandContext(t.Context(), "git", "-C", b.host.dir, "config", "core.fsmonitor", hook).Run(); err != nil {
		t.Fatal(err)
	}
	c := spec.Cache{Key: "k", Untracked: true}
	b.must(b.SaveCache(t.Context(), c))
	b.says("Creating cache k...", "untracked: found 3 files", "0.0 MiB (0.0 MiB new)", "Created cache")
	if _, err := os.Stat(hook + ".ran"); err == nil {
		t.Error("git has run what the repository names")
	}
	_ = exec.CommandContext(t.Context(), "git", "-C", b.host.dir, "ls-files", "--others").Run()
	if _, err := os.Stat(hook + ".ran"); err != nil {
		t.Error("nothing would have run: ", err)
	}
	b.must(b.Upload(t.Context(), spec.Artifact{Untracked: true, Paths: []string{"tracked"}, Exclude: []string{"dir/**", "*.o"}}))
	b.says("Uploading artifacts...", "tracked: found 1 matching artifact files and directories", "untracked: found 1 files",
		"dir/**: excluded 1 files", "*.o: excluded 1 files", "Uploading artifacts to coordinator... 201 Created  id=7")
	b.clear()
	b.must(b.RestoreCache(t.Context(), c))
	b.holds("a.o=3 dir/f=4 new=2")
	b.clear()
	b.must(b.SaveCache(t.Context(), c))
	if said := strings.Join(b.said, "\n"); !strings.Contains(said, "untracked: exit status 128: ") || !strings.Contains(said, "untracked: no files") {
		t.Error(said)
	}
}

func TestGitLabArtifacts(t *testing.T) {
	b := newKeptBench(t)
	b.write("dist/a", strings.Repeat("1", 500), "dist/b.log", "2", "dist/c/d", "3", "report.xml", "<x/>", "other.xml", "<y/>")
	b.must(os.Symlink("a", filepath.Join(b.host.dir, "dist/link")))
	a := spec.Artifact{Name: "$NAME/$NAME-x", Paths: []string{"dist"}, Exclude: []string{"**/*.log"}, Type: "archive", Format: "zip", ExpireIn: "1 week"}
	b.forge.tries = 3
	b.must(b.Upload(t.Context(), a))
	b.says("Uploading artifacts...", "dist: found 5 matching artifact files and directories", "**/*.log: excluded 1 files",
		`Uploading artifacts as "archive" to coordinator... 201 Created  id=7`)
	if want := (gitlabjob.ArtifactOptions{Name: "name-x.zip", Type: "archive", Format: "zip", ExpireIn: "1 week"}); b.forge.options != want {
		t.Errorf("%+v", b.forge.options)
	}
	if _, err := zip.NewReader(bytes.NewReader(b.forge.uploaded), int64(len(b.forge.uploaded))); err != nil {
		t.Fatal(err)
	}
	zipped := b.forge.uploaded

	for _, c := range []struct {
		format, name, want string
		paths              []string
		body               string
	}{
		{"", "", "artifacts.zip", []string{"dist"}, "PK"},
		{"gzip", "junit.xml", "junit.xml.gz", []string{"*.xml"}, "\x1f\x8b"},
		{"raw", "gl-report.json", "gl-report.json", []string{"report.xml"}, "<x/>"},
		{"raw", "/", "default", []string{"report.xml"}, "<x/>"},
	} {
		b.must(b.Upload(t.Context(), spec.Artifact{Name: c.name, Format: c.format, Paths: c.paths}))
		if b.forge.options.Name != c.want || !strings.HasPrefix(string(b.forge.uploaded), c.body) {
			t.Errorf("%+v: %+v", c, b.forge.options)
		}
	}
	b.said, b.forge.uploaded = nil, nil
	b.must(b.Upload(t.Context(), spec.Artifact{Paths: []string{"none"}}))
	b.says("Uploading artifacts...", "WARNING: none: no matching files. Ensure that the artifact path is relative to the working directory (DIR)", "ERROR: No files to upload")
	b.fails(b.Upload(t.Context(), spec.Artifact{Format: "raw", Paths: []string{"*.xml"}}), "only one file can be sent as raw")
	b.says("Uploading artifacts...", "FATAL: only one file can be sent as raw")
	b.fails(b.Upload(t.Context(), spec.Artifact{Format: "gzip", Paths: []string{"dist"}}), "not a regular file")
	b.fails(b.Upload(t.Context(), spec.Artifact{Format: "rar", Paths: []string{"dist"}}), "use zip, gzip or raw")
	if b.forge.uploaded != nil {
		t.Error("something was uploaded")
	}
	b.said = nil
	for status, want := range map[int][2]string{
		413: {"ERROR: Uploading artifacts to coordinator... 413 Request Entity Too Large  id=7", "too large"},
		403: {"ERROR: Uploading artifacts to coordinator... 403 Forbidden  id=7", "permission denied"},
		503: {"ERROR: Uploading artifacts to coordinator... 503 Service Unavailable  id=7", "service unavailable"},
		500: {"WARNING: Uploading artifacts to coordinator... 500 Internal Server Error  id=7", "the forge says no"},
	} {
		b.forge.status = status
		b.fails(b.Upload(t.Context(), spec.Artifact{Paths: []string{"report.xml"}}), want[1])
		said := b.said
		b.said = said[2:3]
		b.says(want[0])
		if !strings.Contains(said[3], "FATAL: ") || !strings.Contains(said[3], want[1]) {
			t.Error(said[3])
		}
		b.said = nil
	}
	b.forge.status = 0
	b.write("dist/big", strings.Repeat("x", 2<<20))
	b.fails(b.Upload(t.Context(), a), "more than 1048576 bytes")

	// Downloads.
	d := spec.Dependency{ID: 5, Name: "build"}
	b.clear()
	b.must(b.Download(t.Context(), d))
	b.says()
	d.ArtifactsFile.Filename = "name-x.zip"
	b.forge.uploaded, b.forge.cut = zipped, 1
	b.write("dist/a", "replaced")
	b.must(b.Download(t.Context(), d))
	b.says("Downloading artifacts for build (5)...", "WARNING: Downloading artifacts from coordinator... failed  id=5 status=error",
		"WARNING: Retrying...  error=unexpected EOF", "Downloading artifacts from coordinator... ok  id=5 responseStatus=200 OK")
	b.holds("dist/a=" + strings.Repeat("1", 500) + " dist/c/d=3")
	for status, want := range map[int][2]string{
		404: {"not found  id=5 status=404 Not Found", "FATAL: file does not exist"},
		403: {"forbidden  id=5 status=403 Forbidden", "FATAL: permission denied"},
		401: {"unauthorized  id=5 status=401 Unauthorized", "FATAL: permission denied"},
	} {
		b.forge.status = status
		b.fails(b.Download(t.Context(), d), "(5)")
		b.says("Downloading artifacts for build (5)...", "ERROR: Downloading artifacts from coordinator... "+want[0], want[1])
	}
	b.vars["ARTIFACT_DOWNLOAD_ATTEMPTS"] = "2"
	b.fails(b.Download(t.Context(), d), "(5)")
	if n := strings.Count(strings.Join(b.said, "\n"), "Downloading artifacts for"); n != 2 {
		t.Error(n, "attempts")
	}
	delete(b.vars, "ARTIFACT_DOWNLOAD_ATTEMPTS")
	b.forge.status = 0
	b.clear()
	b.forge.uploaded = []byte("not a zip")
	b.fails(b.Download(t.Context(), d), "not a valid zip file")
	b.holds("")
}

// TestGitLabKeptEnds holds that a job that is over ends what is under way, and that the sandbox's failures are not the
// job's.
func TestGitLabKeptEnds(t *testing.T) {
	b := newKeptBench(t)
	b.write("f", "1")
	over := errors.New("the job is over")
	stuck := func(ctx context.Context, _ sandbox.Process) (sandbox.Exit, error) {
		<-ctx.Done()
		return sandbox.Exit{}, context.Cause(ctx)
	}
	gone := errors.New("the sandbox is gone")
	d := spec.Dependency{ID: 5}
	d.ArtifactsFile.Filename = "x.zip"
	for name, do := range map[string]func(context.Context) error{
		"upload":   func(ctx context.Context) error { return b.Upload(ctx, spec.Artifact{Paths: []string{"f"}}) },
		"download": func(ctx context.Context) error { return b.Download(ctx, d) },
		"save":     func(ctx context.Context) error { return b.SaveCache(ctx, spec.Cache{Paths: []string{"f"}}) },
	} {
		b.host.broken = stuck
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(20*time.Millisecond, func() { cancel(over) })
		if err := do(ctx); !errors.Is(err, over) {
			t.Error(name, err)
		}
		b.host.broken = func(context.Context, sandbox.Process) (sandbox.Exit, error) { return sandbox.Exit{}, gone }
		err := do(t.Context())
		var failed *gitlabjob.ArtifactError
		if errors.As(err, &failed) || name != "save" && !errors.Is(err, gone) {
			t.Error(name, err)
		}
	}
}
