// Package metrics tells Prometheus how the jobs, the machine's capacity and the forges do.
//
// Names follow https://prometheus.io/docs/practices/naming. Labels are words of our own and the names of runners, never
// a project's or a job's: their number does not grow with the use.
package metrics

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab"
)

// jobBuckets are in seconds: from what a pool gives at once to an hour.
func jobBuckets() []float64 {
	return []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600}
}

// callBuckets are in seconds. Requests for jobs are held for 50 s.
func callBuckets() []float64 { return []float64{.005, .025, .1, .25, .5, 1, 2.5, 10, 45, 60, 120} }

// The phases of a job.
const (
	phaseWait  = "wait"  // from when the source gave it until it was admitted
	phaseOpen  = "open"  // until its sandbox was ready
	phaseRun   = "run"   // until its last step ended
	phaseClose = "close" // until nothing of the sandbox was left
)

// Metrics are a daemon's. What they say of its parts is added with Collect and the like.
type Metrics struct {
	registry *prometheus.Registry

	finished    *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	phase       *prometheus.HistogramVec
	firstOutput *prometheus.HistogramVec
	logBytes    *prometheus.CounterVec
	cpu         *prometheus.CounterVec
	used        used
	calls       *prometheus.HistogramVec
	phases      *prometheus.CounterVec
	forDisk     prometheus.Gauge
}

// New returns the metrics of a daemon of that version, those of its process among them.
func New(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		finished: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "runnerd_jobs_finished_total", Help: "Finished jobs, by how they ended.",
		}, []string{"source", "outcome", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "runnerd_job_duration_seconds", Help: "From when the source gave the job until nothing of it was left.", Buckets: jobBuckets(),
		}, []string{"source", "outcome"}),
		phase: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "runnerd_job_phase_duration_seconds", Help: "The phases of jobs: wait until admitted, open the sandbox, run, close the sandbox.", Buckets: jobBuckets(),
		}, []string{"source", "phase"}),
		firstOutput: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "runnerd_job_first_output_seconds", Help: "From when the source gave the job until its first output.", Buckets: jobBuckets(),
		}, []string{"source"}),
		logBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "runnerd_job_log_bytes_total", Help: "What jobs wrote, with secrets hidden.",
		}, []string{"source", "stream"}),
		cpu: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "runnerd_job_cpu_seconds_total", Help: "Processor time that finished jobs used.",
		}, []string{"source"}),
		used: newUsed(),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "runnerd_forge_request_duration_seconds", Help: "Each try of each request to a forge; status 0: no answer. The forge holds requests for jobs.", Buckets: callBuckets(),
		}, []string{"forge", "method", "endpoint", "status"}),
		phases: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "runnerd_forge_job_phases_total", Help: "Jobs of forges by what they have come to: assigned, accepted, canceling, lost, returned, decided, done; untold: the forge could not be told how it ended.",
		}, []string{"runner", "phase"}),
		forDisk: prometheus.NewGauge(prometheus.GaugeOpts{Name: "runnerd_jobs_waiting_for_disk", Help: "Admitted jobs that wait for room on the disk."}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "runnerd_build_info", Help: "Always 1; what this runnerd is.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.used.register(m.registry)
	m.registry.MustRegister(
		build, m.finished, m.duration, m.phase, m.firstOutput, m.logBytes, m.cpu, m.calls, m.phases, m.forDisk,
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector(),
	)
	return m
}

// Handler serves them, in the formats that Prometheus asks for.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// Observe is a runner.Config.Observe.
func (m *Metrics) Observe(j runner.Job, s runner.State, r *runner.Result) {
	if s != runner.Finished || r == nil {
		return
	}
	source := j.Kind
	m.finished.WithLabelValues(source, string(r.Outcome), r.Reason).Inc()
	m.cpu.WithLabelValues(source).Add(r.Usage.CPU.Seconds())
	m.used.add(source, r.Usage)
	t := r.Times
	end := t.Closed
	if end.IsZero() {
		end = time.Now()
	}
	m.duration.WithLabelValues(source, string(r.Outcome)).Observe(end.Sub(t.Accepted).Seconds())
	for _, p := range []struct {
		name     string
		from, to time.Time
	}{{phaseWait, t.Accepted, t.Admitted}, {phaseOpen, t.Admitted, t.Opened}, {phaseRun, t.Opened, t.Ended}, {phaseClose, t.Ended, t.Closed}} {
		if !p.from.IsZero() && !p.to.IsZero() {
			m.phase.WithLabelValues(source, p.name).Observe(p.to.Sub(p.from).Seconds())
		}
	}
}

// Room wraps a runner.Config.Room, and counts who waits in it.
func (m *Metrics) Room(room func(ctx context.Context, waiting func(string)) error) func(ctx context.Context, waiting func(string)) error {
	return func(ctx context.Context, waiting func(string)) error {
		waits := false
		defer func() {
			if waits {
				m.forDisk.Dec()
			}
		}()
		return room(ctx, func(reason string) {
			if !waits {
				waits = true
				m.forDisk.Inc()
			}
			waiting(reason)
		})
	}
}

// Forge notes one try of a request to a registration's forge.
func (m *Metrics) Forge(r gitlab.Registration, k gitlab.Call) {
	m.calls.WithLabelValues(r.Host(), k.Method, k.Endpoint, fmt.Sprint(k.Status)).Observe(k.Took.Seconds())
}

// Phase is a gitlab.Config.Observe.
func (m *Metrics) Phase(e gitlab.Event) {
	m.phases.WithLabelValues(e.Registration, string(e.Phase)).Inc()
}
