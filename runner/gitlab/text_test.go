package gitlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// TestTokenMask hides what looks like a token, wherever the writes are cut.
func TestTokenMask(t *testing.T) {
	server := []string{"acme-", "", "x_"}
	for in, want := range map[string]string{
		"nothing to hide":                          "nothing to hide",
		"glpat-abcDEF_123.x=-y rest":               "glpat-[MASKED] rest",
		"glpat-":                                   "glpat-",
		"glpat- glrt-x":                            "glpat- glrt-[MASKED]",
		"a glrtr-x\nglft-y,gloas-z":                "a glrtr-[MASKED]\nglft-[MASKED],gloas-[MASKED]",
		"gldt-1 glcbt-2 glptt-3 glimt-4 glagent-5": "gldt-[MASKED] glcbt-[MASKED] glptt-[MASKED] glimt-[MASKED] glagent-[MASKED]",
		"glsoat-6 glffct-7 gltok-8":                "glsoat-[MASKED] glffct-[MASKED] gltok-[MASKED]",
		"Cookie: _gitlab_session=0af1; x":          "Cookie: _gitlab_session=[MASKED]; x",
		"acme-key x_key":                           "acme-[MASKED] x_[MASKED]",
		"GLPAT-x ggglpat-x":                        "GLPAT-x ggglpat-[MASKED]",
		"https://h/?private_token=a+b%20c&x=y":     "https://h/?private_token=[MASKED]&x=y",
		"https://h/?a=b&X-Amz-Signature=0a9/ next": "https://h/?a=b&X-Amz-Signature=[MASKED] next",
		"?X-Amz-Credential=AK/2&X-Amz-Security-Token=t?rss_token=r&authenticity_token=q\n": "?X-Amz-Credential=[MASKED]&X-Amz-Security-Token=[MASKED]?rss_token=[MASKED]&authenticity_token=[MASKED]\n",
		"private_token=a &privat=e ?tokens=b":                                              "private_token=a &privat=e ?tokens=b",
		"glpat-[MASKED] ?rss_token=[MASKED]":                                               "glpat-[MASKED] ?rss_token=[MASKED]",
	} {
		for range 20 {
			var out strings.Builder
			m := &tokenMask{rules: newTokenRules(server, true), w: &out}
			for rest := in; rest != ""; {
				n := 1 + rand.IntN(len(rest))
				if _, err := io.WriteString(m, rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := m.Flush(); err != nil {
				t.Fatal(err)
			}
			if out.String() != want {
				t.Errorf("%q:\n%q, not\n%q", in, out.String(), want)
				break
			}
		}
	}

	var out strings.Builder
	m := &tokenMask{rules: newTokenRules(nil, false), w: &out}
	_, _ = io.WriteString(m, "glpat-x glrt-x\n")
	if out.String() != "glpat-[MASKED] glrt-x\n" {
		t.Errorf("with FF_MASK_ALL_DEFAULT_TOKENS off: %q", out.String())
	}

	// A server's prefixes count up to a number.
	var many []string
	for i := range 20 {
		many = append(many, fmt.Sprintf("p%02d-", i))
	}
	out.Reset()
	m = &tokenMask{rules: newTokenRules(many, true), w: &out}
	_, _ = io.WriteString(m, "p14-a p15-a glpat-a\n")
	if out.String() != "p14-[MASKED] p15-a glpat-[MASKED]\n" {
		t.Errorf("%q", out.String())
	}
}

func BenchmarkTokenMask(b *testing.B) {
	m := &tokenMask{rules: newTokenRules(nil, true), w: io.Discard}
	data := []byte(strings.Repeat("2026-11-24T19:15:00Z go: downloading github.com/google/uuid v1.6.0 with gl and g\n", 800))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		_, _ = m.Write(data)
	}
}

func TestStampsAreWanted(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, "CI_SERVER_VERSION_MAJOR=17": false, "CI_SERVER_VERSION_MAJOR=18": true, "CI_SERVER_VERSION_MAJOR=19 FF_TIMESTAMPS=false": false,
		"FF_TIMESTAMPS=true": true, "FF_TIMESTAMPS=1 FF_TIMESTAMPS=0": false,
	} {
		var j spec.Job
		for v := range strings.FieldsSeq(text) {
			key, value, _ := strings.Cut(v, "=")
			j.Variables = append(j.Variables, spec.Variable{Key: key, Value: value})
		}
		if got := stamps(&j); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestSpool(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x.trace")
	s, err := openSpool(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	if o := s.output(); o.Checksum != "crc32:00000000" || o.Bytesize != 0 {
		t.Errorf("%+v", o)
	}
	for _, text := range []string{"The quick brown fox ", "jumps over the lazy dog"} {
		if _, err := io.WriteString(s, text); err != nil {
			t.Fatal(err)
		}
	}
	want := spec.Output{Checksum: "crc32:414fa339", Bytesize: 43} // the well-known one
	if o := s.output(); o != want {
		t.Errorf("%+v", o)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = openSpool(name, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if o := s.output(); o != want {
		t.Errorf("after it was opened again: %+v", o)
	}
	if data, err := s.read(40, 100); err != nil || string(data) != "dog" {
		t.Errorf("%q %v", data, err)
	}
	if data, err := s.read(43, 100); err != nil || len(data) != 0 {
		t.Errorf("%q %v", data, err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	for in, want := range map[string]string{"aä": "aä", "a\xc3": "a", "a\xe2\x82": "a", "\x80\x80": "\x80\x80", "": ""} {
		if got := wholeRunes([]byte(in)); !bytes.Equal(got, []byte(want)) {
			t.Errorf("%q: %q", in, got)
		}
	}
}

// ownFailure is an error as package job has them.
type ownFailure spec.FailureReason

func (f ownFailure) Error() string { return string(f) }

func ownReason(err error) spec.FailureReason {
	var f ownFailure
	if errors.As(err, &f) {
		return spec.FailureReason(f)
	}
	return ""
}

// TestVerdict is the table of how a job's end is told, and TestSupported that of what servers know.
func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		result    runner.Result
		canceling bool
		want      string
	}{
		{runner.Result{Outcome: runner.Succeeded}, false, "success  0"},
		{runner.Result{Outcome: runner.Succeeded}, true, "success  0"},
		{runner.Result{Outcome: runner.Failed, ExitCode: 3}, false, "failed script_failure 3"},
		{runner.Result{Outcome: runner.Failed, ExitCode: 137, Reason: runner.ReasonOOM}, false, "failed script_failure 137"},
		{runner.Result{Outcome: runner.Failed, ExitCode: 3}, true, "failed job_canceled 0"},
		{runner.Result{Outcome: runner.TimedOut}, false, "failed job_execution_timeout 0"},
		{runner.Result{Outcome: runner.Cancelled}, false, "failed runner_interrupted 0"},
		{runner.Result{Outcome: runner.Cancelled, Reason: runner.ReasonShutdown}, false, "failed runner_system_failure 0"},
		{runner.Result{Outcome: runner.Rejected, Reason: runner.ReasonImage}, false, "failed image_pull_failure 0"},
		{runner.Result{Outcome: runner.Rejected, Reason: runner.ReasonPolicy}, false, "failed runner_configuration_error 0"},
		{runner.Result{Outcome: runner.Rejected, Reason: runner.ReasonTooBig}, false, "failed runner_configuration_error 0"},
		{runner.Result{Outcome: runner.Errored}, false, "failed runner_system_failure 0"},
		{runner.Result{Outcome: runner.Errored, Reason: runner.ReasonPanic}, false, "failed runner_system_failure 0"},
		{runner.Result{Outcome: runner.Errored, Err: fmt.Errorf("step: %w", ownFailure(spec.ImagePullFailure))}, false, "failed image_pull_failure 0"},
		{runner.Result{Outcome: runner.Errored, Err: ownFailure(spec.ExternalDependencyFailure)}, false, "failed runner_external_dependency_failure 0"},
		{runner.Result{Outcome: runner.Errored, ExitCode: 1, Err: ownFailure(spec.ScriptFailure)}, false, "failed script_failure 1"},
		{runner.Result{Outcome: runner.Rejected, Err: ownFailure(spec.ConfigurationError)}, false, "failed runner_configuration_error 0"},
	} {
		v := verdictOf(c.result, c.canceling, ownReason)
		if got := fmt.Sprint(v.State, " ", v.Reason, " ", v.ExitCode); got != c.want {
			t.Errorf("%+v: %s, not %s", c.result, got, c.want)
		}
	}
}

func TestSupported(t *testing.T) {
	for _, c := range []struct {
		reason, known, want spec.FailureReason
	}{
		{"", "", spec.ScriptFailure},
		{spec.ScriptFailure, "", spec.ScriptFailure},
		{spec.RunnerSystemFailure, "", spec.RunnerSystemFailure},
		{spec.JobExecutionTimeout, "", spec.JobExecutionTimeout},
		{spec.ImagePullFailure, "", spec.RunnerSystemFailure},
		{spec.ImagePullFailure, spec.ImagePullFailure, spec.ImagePullFailure},
		{spec.ConfigurationError, "", spec.ScriptFailure},
		{spec.ConfigurationError, spec.ConfigurationError, spec.ConfigurationError},
		{spec.ExternalDependencyFailure, "", spec.RunnerSystemFailure},
		{spec.RunnerInterrupted, "", spec.UnknownFailure},
		{spec.RunnerInterrupted, spec.RunnerInterrupted, spec.RunnerInterrupted},
		{spec.JobCanceled, "", spec.UnknownFailure},
		{spec.UnknownFailure, "", spec.UnknownFailure},
		{"of tomorrow", "", spec.UnknownFailure},
	} {
		if got := supported(c.reason, []string{string(c.known)}); got != c.want {
			t.Errorf("%q for a server that knows %q: %q, not %q", c.reason, c.known, got, c.want)
		}
	}
}

// TestSecrets looks for secrets of a job in all that leaves it.
func TestSecrets(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		w.run = func(_ context.Context, a Assigned, out runner.Output) (sandbox.Exit, error) {
			for _, text := range []string{a.Job.Token, "masked-value", "registry-password", "dependency-token", "glpat-0123456789", "shown"} {
				for _, part := range []string{text[:3], text[3:], "\n"} {
					_, _ = io.WriteString(out.Stream(runner.Stdout), part)
				}
			}
			return sandbox.Exit{}, nil
		}
		id := w.fake.offer(func(j *spec.Job) {
			j.Variables = []spec.Variable{{Key: "A", Value: "masked-value", Masked: true}, {Key: "B", Value: "shown"}}
			j.Credentials = []spec.Credential{{Type: "registry", Password: "registry-password"}}
			j.Dependencies = []spec.Dependency{{ID: 1, Token: "dependency-token"}}
		})
		w.start()
		j := w.over(id, time.Second)
		for name, text := range map[string]string{"the server's": string(j.trace), "the machine's": w.only().said()} {
			if !strings.HasPrefix(text, "[MASKED]\n[MASKED]\n[MASKED]\n[MASKED]\nglpat-[MASKED]\nshown\n") {
				t.Errorf("%s log: %q", name, text)
			}
		}
		if log := w.log.String(); strings.Contains(log, j.spec.Token) || strings.Contains(log, "masked-value") {
			t.Errorf("the daemon's log: %s", log)
		}
	})
}
