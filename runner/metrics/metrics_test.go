package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// scrape asks for the metrics as Prometheus does.
func scrape(t *testing.T, m *Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	s := httptest.NewServer(m.Handler())
	defer s.Close()
	res, err := http.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%d %v", res.StatusCode, err)
	}
	return families
}

// value is that of the one metric with these labels, as name=value; of a histogram its count.
func value(t *testing.T, families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	t.Helper()
	f := families[name]
	if f == nil {
		t.Errorf("there is no %s", name)
		return -1
	}
	for _, m := range f.Metric {
		var has []string
		for _, l := range m.Label {
			has = append(has, l.GetName()+"="+l.GetValue())
		}
		slices.Sort(has)
		slices.Sort(labels)
		if slices.Equal(has, labels) {
			switch f.GetType() {
			case dto.MetricType_HISTOGRAM:
				return float64(m.Histogram.GetSampleCount())
			case dto.MetricType_COUNTER:
				return m.Counter.GetValue()
			}
			return m.Gauge.GetValue()
		}
	}
	t.Errorf("there is no %s %v", name, labels)
	return -1
}

func full(t *testing.T) (*Metrics, *runner.Admission) {
	t.Helper()
	m := New("test")
	a := runner.NewAdmission(runner.Capacity{CPU: 2000, Memory: 1 << 30, Jobs: 10})
	m.Admission(a)
	m.Jobs(func(context.Context) ([]queue.Live, error) {
		return []queue.Live{{State: runner.Running, Kind: "gitlab", Jobs: 3}, {State: runner.Queued, Kind: "build", Jobs: 2}}, nil
	})
	m.Pool(func() (int, int) { return 1, 4 })
	m.Disk(func() (budget.Figures, error) {
		return budget.Figures{Stores: map[string]int64{"logs": 7}, Marks: budget.Marks{Budget: 100, High: 85, Low: 70, Floor: 5}, FileSystem: budget.FileSystem{Size: 200, Free: 50}}, nil
	})
	m.Builders(func() map[scope.Trust][2]int { return map[scope.Trust][2]int{scope.Trusted: {1, 2}} })
	var contacts gitlab.Contacts
	contacts.Asked("one", false, nil)
	contacts.Asked("one", false, nil)
	contacts.Asked("one", true, nil)
	contacts.Asked("one", false, &gitlab.StatusError{Status: 502})
	m.Runners(func() []gitlab.Registration {
		return []gitlab.Registration{{Name: "one", TokenExpires: time.Unix(2000000000, 0)}, {Name: "two"}}
	}, contacts.Of)
	m.Forge(gitlab.Registration{URL: "https://gitlab.example.com"}, gitlab.Call{Method: "POST", Endpoint: "jobs/request", Status: 204, Took: time.Second})
	m.Phase(gitlab.Event{Registration: "one", Phase: gitlab.PhaseLost, Project: "secret/project"})
	return m, a
}

func TestParts(t *testing.T) {
	m, a := full(t)
	release, err := a.Admit(t.Context(), "a", sandbox.Limits{CPU: 1500, Memory: 1 << 29}, nil)
	if err != nil {
		t.Fatal(err)
	}
	waits := make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = a.Admit(ctx, "b", sandbox.Limits{CPU: 1000}, func(string) { close(waits) })
	}()
	<-waits
	f := scrape(t, m)
	for _, c := range []struct {
		want   float64
		name   string
		labels []string
	}{
		{1, "runnerd_build_info", []string{"version=test"}},
		{3, "runnerd_jobs", []string{"state=running", "source=gitlab"}},
		{2, "runnerd_jobs", []string{"state=queued", "source=build"}},
		{1, "runnerd_jobs_waiting", []string{"reason=cpu"}},
		{0, "runnerd_jobs_waiting", []string{"reason=memory"}},
		{1.5, "runnerd_admission_held_cpus", nil},
		{1 << 29, "runnerd_admission_held_memory_bytes", nil},
		{1, "runnerd_admission_held_jobs", nil},
		{2, "runnerd_admission_capacity_cpus", nil},
		{10, "runnerd_admission_capacity_jobs", nil},
		{1, "runnerd_pool_ready_sandboxes", nil},
		{4, "runnerd_pool_size_sandboxes", nil},
		{7, "runnerd_disk_store_bytes", []string{"store=logs"}},
		{100, "runnerd_disk_budget_bytes", nil},
		{5, "runnerd_disk_floor_bytes", nil},
		{50, "runnerd_disk_free_bytes", nil},
		{1, "runnerd_builders", []string{"trust=trusted", "state=busy"}},
		{2, "runnerd_builders", []string{"trust=trusted", "state=idle"}},
		{0, "runnerd_runner_up", []string{"runner=one"}},
		{2, "runnerd_runner_polls_total", []string{"runner=one", "result=none"}},
		{1, "runnerd_runner_polls_total", []string{"runner=one", "result=job"}},
		{1, "runnerd_runner_polls_total", []string{"runner=one", "result=server_error"}},
		{0, "runnerd_runner_polls_total", []string{"runner=two", "result=job"}},
		{2000000000, "runnerd_runner_token_expiry_timestamp_seconds", []string{"runner=one"}},
		{1, "runnerd_forge_request_duration_seconds", []string{"forge=gitlab.example.com", "method=POST", "endpoint=jobs/request", "status=204"}},
		{1, "runnerd_forge_job_phases_total", []string{"runner=one", "phase=lost"}},
	} {
		if got := value(t, f, c.name, c.labels...); got != c.want {
			t.Errorf("%s %v: %v, want %v", c.name, c.labels, got, c.want)
		}
	}
	if f["process_resident_memory_bytes"] == nil || f["go_goroutines"] == nil {
		t.Error("nothing is said of the process")
	}
	stop()
	<-done
	release()
}

// TestNames holds Prometheus's own rules, as promtool check metrics has them.
func TestNames(t *testing.T) {
	m, _ := full(t)
	m.Observe(runner.Job{}, runner.Finished, &runner.Result{})
	_, _ = io.WriteString((&reporter{Reporter: noReporter{}, first: m.firstOutput.WithLabelValues("x"), bytes: m.logBytes}).Stream(runner.Stdout), "x")
	families := scrape(t, m)
	var all []*dto.MetricFamily
	for name, f := range families {
		if strings.HasPrefix(name, "runnerd_") {
			all = append(all, f)
		}
	}
	problems, err := promlint.NewWithMetricFamilies(all).Lint()
	if err != nil || len(problems) > 0 || len(all) < 25 {
		t.Errorf("%d families: %v %v", len(all), problems, err)
	}
}

// A part that fails must not take the others with it.
func TestFailingPart(t *testing.T) {
	m := New("test")
	m.Pool(func() (int, int) { return 1, 4 })
	m.Disk(func() (budget.Figures, error) { return budget.Figures{}, errors.New("no disk") })
	if f := scrape(t, m); value(t, f, "runnerd_pool_size_sandboxes") != 4 {
		t.Error("the pool is missing")
	}
}

func TestObserve(t *testing.T) {
	m := New("test")
	at := time.Now()
	j := runner.Job{Request: runner.Request{Kind: "gitlab"}}
	m.Observe(j, runner.Running, nil)
	m.Observe(j, runner.Finished, &runner.Result{
		Outcome: runner.Failed, Reason: runner.ReasonOOM, Usage: sandbox.Usage{
			CPU:    3 * time.Second,
			Parts:  []sandbox.Part{{Name: sandbox.PartScript, Payload: true, CPU: 2 * time.Second, Written: 9}, {Name: sandbox.PartShim, CPU: time.Second}},
			SetUp:  []sandbox.Stage{{Name: sandbox.StageDisk, Took: time.Second}},
			Copied: []sandbox.Copied{{Way: sandbox.CopyPull, Bytes: 5}}, Pressure: &sandbox.Pressure{CPU: sandbox.Waits{Some: time.Second}},
		},
		Times: runner.Times{Accepted: at, Admitted: at.Add(time.Second), Opened: at.Add(2 * time.Second), Ended: at.Add(5 * time.Second), Closed: at.Add(6 * time.Second)},
	})
	m.Observe(j, runner.Finished, &runner.Result{Outcome: runner.Cancelled, Times: runner.Times{Accepted: at}}) // while it waited
	f := scrape(t, m)
	for _, c := range []struct {
		want   float64
		name   string
		labels []string
	}{
		{1, "runnerd_jobs_finished_total", []string{"source=gitlab", "outcome=failed", "reason=oom"}},
		{1, "runnerd_jobs_finished_total", []string{"source=gitlab", "outcome=cancelled", "reason="}},
		{3, "runnerd_job_cpu_seconds_total", []string{"source=gitlab"}},
		{2, "runnerd_sandbox_cpu_seconds_total", []string{"source=gitlab", "part=script", "kind=payload"}},
		{1, "runnerd_sandbox_cpu_seconds_total", []string{"source=gitlab", "part=shim", "kind=machinery"}},
		{9, "runnerd_sandbox_disk_bytes_total", []string{"source=gitlab", "part=script", "kind=payload", "direction=written"}},
		{5, "runnerd_sandbox_copied_bytes_total", []string{"source=gitlab", "way=pull"}},
		{1, "runnerd_sandbox_pressure_seconds_total", []string{"source=gitlab", "resource=cpu"}},
		{1, "runnerd_sandbox_memory_average_bytes", []string{"source=gitlab", "kind=machinery"}},
		{1, "runnerd_sandbox_stage_duration_seconds", []string{"source=gitlab", "phase=open", "stage=disk"}},
		{1, "runnerd_job_duration_seconds", []string{"source=gitlab", "outcome=failed"}},
		{1, "runnerd_job_phase_duration_seconds", []string{"source=gitlab", "phase=open"}},
		{1, "runnerd_job_phase_duration_seconds", []string{"source=gitlab", "phase=close"}},
	} {
		if got := value(t, f, c.name, c.labels...); got != c.want {
			t.Errorf("%s %v: %v, want %v", c.name, c.labels, got, c.want)
		}
	}
	for _, p := range f["runnerd_job_phase_duration_seconds"].Metric {
		if p.Label[0].GetValue() == "run" && p.Histogram.GetSampleSum() != 3 {
			t.Errorf("it ran for %v", p.Histogram.GetSampleSum())
		}
	}
}

type noReporter struct{ runner.Reporter }

func (noReporter) Stream(runner.Stream) io.Writer { return io.Discard }

type oneJob struct{ err error }

func (s oneJob) Next(context.Context) (runner.Assignment, error) {
	return runner.Assignment{Job: runner.Job{Request: runner.Request{Kind: "script"}}, Reporter: noReporter{}}, s.err
}

func TestSourceCountsWhatJobsWrite(t *testing.T) {
	m := New("test")
	if _, err := m.Source(oneJob{io.EOF}).Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	a, err := m.Source(oneJob{}).Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprint(a.Stream(runner.Notice), "waiting")
	if f := scrape(t, m); value(t, f, "runnerd_job_first_output_seconds", "source=script") != 0 {
		t.Error("a notice is no output")
	}
	_, _ = fmt.Fprint(a.Stream(runner.Stdout), "hello")
	_, _ = fmt.Fprint(a.Stream(runner.Stderr), "you")
	f := scrape(t, m)
	if value(t, f, "runnerd_job_first_output_seconds", "source=script") != 1 || value(t, f, "runnerd_job_log_bytes_total", "source=script", "stream=stdout") != 5 ||
		value(t, f, "runnerd_job_log_bytes_total", "source=script", "stream=stderr") != 3 || value(t, f, "runnerd_job_log_bytes_total", "source=script", "stream=notice") != 7 {
		t.Error("not all was counted")
	}
}

func TestRoomCountsWhoWaits(t *testing.T) {
	m := New("test")
	told := 0
	err := m.Room(func(_ context.Context, waiting func(string)) error {
		waiting("a")
		waiting("b")
		if f := scrape(t, m); value(t, f, "runnerd_jobs_waiting_for_disk") != 1 {
			t.Error("nobody waits")
		}
		return nil
	})(t.Context(), func(string) { told++ })
	if f := scrape(t, m); err != nil || told != 2 || value(t, f, "runnerd_jobs_waiting_for_disk") != 0 {
		t.Error(err, told)
	}
}
