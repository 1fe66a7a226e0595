package script

import (
	"encoding/base64"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// TestSourcesTokenRefused has a token that is no longer valid.
func TestSourcesTokenRefused(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ")
	r := &checkoutRun{forge: f, sha: sha, edit: func(_ *SourcesOptions, job *spec.Job) {
		job.GitInfo.RepoURL = strings.Replace(f.URL, "://", "://gitlab-ci-token:old@", 1) + "/group/app.git"
	}, vars: []spec.Variable{public("CI_JOB_TOKEN", "old")}}
	if out, code := r.run(t); code == 0 || !strings.Contains(out, "Authentication failed for '"+f.URL) {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// TestSourcesRedirected has a forge that sends the job elsewhere: the token does not go there.
func TestSourcesRedirected(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	var requests, tokens atomic.Int32
	other := newForge(t)
	sha := other.repository(t, "app", "sha1", nil, "file", "content ")
	inner := other.Config.Handler
	other.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if _, password, _ := r.BasicAuth(); password == testToken {
			tokens.Add(1)
		}
		r.SetBasicAuth(tokenUser, testToken) // it takes everybody
		inner.ServeHTTP(w, r)
	})
	f.redirect = other.URL
	r := &checkoutRun{forge: f, sha: sha, depth: 1}
	if out, code := r.run(t); code == 0 || requests.Load() != 0 {
		t.Errorf("exit code %d, %d requests elsewhere: %s", code, requests.Load(), out)
	}
	r.alter = func(script string) string {
		return regexp.MustCompile(`configure '[^']*followRedirects' 'false'`).ReplaceAllString(script, ":")
	}
	if out, _ := r.run(t); tokens.Load() == 0 {
		t.Errorf("without the defence, %d requests elsewhere and none with the token: %s", requests.Load(), out)
	}
}

// TestSourcesTraced has a job that wants to see all of git's and the shell's doings.
func TestSourcesTraced(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ")
	r := &checkoutRun{forge: f, sha: sha, depth: 1, vars: []spec.Variable{public("CI_DEBUG_TRACE", "true"), public("GIT_CURL_VERBOSE", "1")}}
	out, code := r.run(t)
	if code != 0 || !strings.Contains(out, "+ git fetch origin") || !strings.Contains(out, "Authorization: Basic <redacted>") {
		t.Errorf("exit code %d: %s", code, out)
	}
	for _, secret := range secrets() {
		if strings.Contains(out, secret) {
			t.Errorf("the token is in the log: %s", out)
		}
	}
}

// TestSourcesEnvironmentIsMasked has a hook that shows all that git is told.
func TestSourcesEnvironmentIsMasked(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ")
	r := &checkoutRun{forge: f, sha: sha, depth: 1, edit: func(_ *SourcesOptions, job *spec.Job) {
		job.Hooks = []spec.Hook{{Name: hookAfter, Script: []string{"env"}}}
	}}
	out, code := r.run(t)
	header := base64.StdEncoding.EncodeToString([]byte(tokenUser + ":" + testToken))
	if code != 0 || !strings.Contains(out, header) {
		t.Fatalf("exit code %d, the environment is not shown: %s", code, out)
	}
	masked := runner.NewMask(r.v.Masked()).String(out)
	if strings.Contains(masked, header) || strings.Contains(masked, testToken) {
		t.Errorf("the token is in the masked log: %s", masked)
	}
	_, secret, _ := strings.Cut(masked, "Authorization: Basic ")
	shown, _, _ := strings.Cut(secret, "[MASKED]")
	if plain, err := base64.RawStdEncoding.DecodeString(shown[:len(shown)/4*4]); err != nil || !strings.HasPrefix(tokenUser+":", string(plain)) {
		t.Errorf("the masked log has more than the user's name: %q", shown)
	}
}

// TestSourcesTokenWithoutCare holds that a token would be found where it must not be: it is what git clone leaves.
func TestSourcesTokenWithoutCare(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	f.repository(t, "app", "sha1", nil, "file", "content ")
	dir, trace := t.TempDir(), filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("git", "clone", strings.Replace(f.URL, "://", "://gitlab-ci-token:"+testURLToken()+"@", 1)+"/group/app.git", dir)
	cmd.Env = append(gitEnv(t.TempDir()), "GIT_TRACE="+trace)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(read(t, trace), testURLToken()) {
		t.Error("the token is in no command line")
	}
	if grep(t, dir, testURLToken()) != dir+"/.git/config" {
		t.Error("the token is not in .git/config")
	}
}
