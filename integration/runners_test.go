//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// enrolForge knows one runner and has no jobs for it.
type enrolForge struct {
	*httptest.Server
	mu    sync.Mutex
	token string
	calls map[string]int
}

func newEnrolForge(t *testing.T) *enrolForge {
	f := &enrolForge{token: "glrt-t1_integration-test-00", calls: map[string]int{}}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		call := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/api/v4/")
		f.calls[call]++
		var body struct{ Token string }
		_ = json.NewDecoder(r.Body).Decode(&body)
		w.Header().Set("Content-Type", "application/json")
		switch {
		case body.Token != f.token:
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"message":"403 Forbidden"}`)
		case call == "POST runners/verify":
			_, _ = fmt.Fprintf(w, `{"id":7,"token":%q,"token_expires_at":null}`, f.token)
		default: // no jobs, and DELETE runners/managers
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *enrolForge) called(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[call]
}

// TestRunnersOfADaemon registers a runner, looks at what the daemon says of itself and of a job, and kills it.
func TestRunnersOfADaemon(t *testing.T) {
	f := newEnrolForge(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	d := startDaemon(t, "metrics: {address: \""+address+"\"}\n")
	t.Setenv("CI_SERVER_TOKEN", f.token)
	d.want(0, "", "register", "gitlab", "--url", f.URL, "--name", "one", "--concurrent", "2")
	if fi, err := os.Stat(filepath.Join(d.state, "runners", "one.json")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file of a token: %v %v", fi, err)
	}
	if out := d.want(0, "", "runners"); !strings.Contains(out, "one") || !strings.Contains(out, "online") || strings.Contains(out, f.token) {
		t.Errorf("runners: %s", out)
	}

	job := strings.TrimSpace(d.want(0, "", "run", "--detach", "--name", "said", "--", "sh", "-c", "echo hello; exit 3"))
	d.await("said", "finished")
	var events []struct {
		Time          time.Time
		State, Detail string
	}
	if err := json.Unmarshal([]byte(d.want(0, "", "events", job, "--json")), &events); err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, e := range events {
		states = append(states, e.State)
		line := "job=" + job + " source=script project=default state=" + e.State
		if !strings.Contains(d.log.String(), line) {
			t.Errorf("the log does not have the state %s", e.State)
		}
	}
	if got := strings.Join(states, " "); got != "queued opening running closing finished" || !strings.HasPrefix(events[len(events)-1].Detail, "failed: ") {
		t.Errorf("events: %s", got)
	}

	for where, c := range map[string]*http.Client{"http://" + address: http.DefaultClient, "http://runnerd": d.atSocket()} {
		m := scrape(t, c, where+"/metrics")
		for name, want := range map[string]float64{
			`runnerd_jobs_finished_total{outcome="failed",reason="",source="script"}`: 1,
			`runnerd_job_first_output_seconds_count{source="script"}`:                 1,
			`runnerd_job_phase_duration_seconds_count{phase="run",source="script"}`:   1,
			`runnerd_job_log_bytes_total{source="script",stream="stdout"}`:            6,
			`runnerd_runner_up{runner="one"}`:                                         1,
			`runnerd_admission_held_jobs`:                                             0,
			`runnerd_pool_size_sandboxes`:                                             0,
			`runnerd_builders{state="busy",trust="trusted"}`:                          0,
			`runnerd_forge_request_duration_seconds_count{endpoint="runners/verify",forge="` + strings.TrimPrefix(f.URL, "http://") + `",method="POST",status="200"}`: 1,
		} {
			if got, ok := m[name]; !ok || got != want {
				t.Errorf("%s: %s is %v (%v), want %v", where, name, got, ok, want)
			}
		}
		for _, name := range []string{"runnerd_disk_free_bytes", "runnerd_admission_capacity_cpus", "process_resident_memory_bytes", `runnerd_job_phase_duration_seconds_sum{phase="open",source="script"}`} {
			if m[name] <= 0 {
				t.Errorf("%s: %s is %v", where, name, m[name])
			}
		}
		c.CloseIdleConnections()
	}

	_ = d.cmd.Process.Signal(syscall.SIGKILL)
	_ = d.cmd.Wait()
	d.start()
	if out := d.want(0, "", "runners", "--json"); !strings.Contains(out, `"name": "one"`) || !strings.Contains(out, `"concurrent": 2`) {
		t.Errorf("it was forgotten: %s", out)
	}
	if out := d.want(0, "", "events", job); !strings.Contains(out, "closing") {
		t.Errorf("the events were forgotten: %s", out)
	}
	d.want(0, "", "verify")
	d.want(0, "", "unregister", "one")
	if f.called("DELETE runners/managers") != 1 {
		t.Error("the forge was not told")
	}
	if left, _ := filepath.Glob(filepath.Join(d.state, "runners", "*.json")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// atSocket speaks HTTP at the daemon's socket.
func (d *daemon) atSocket() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(d.state, "run", "runnerd.sock"))
	}}}
}

// scrape returns all samples by their names with labels, which are sorted.
func scrape(t *testing.T, c *http.Client, url string) map[string]float64 {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %v", url, res.StatusCode, err)
	}
	all := map[string]float64{}
	for _, f := range families {
		samples, err := expfmt.ExtractSamples(&expfmt.DecodeOptions{Timestamp: model.Now()}, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range samples {
			name := string(s.Metric[model.MetricNameLabel])
			labels := model.LabelSet(s.Metric).Clone()
			delete(labels, model.MetricNameLabel)
			if len(labels) > 0 {
				name += strings.ReplaceAll(labels.String(), ", ", ",")
			}
			all[name] = float64(s.Value)
		}
	}
	return all
}
