package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/scope"
)

// askTimeout bounds what a part of the daemon may take to say how it does.
const askTimeout = 5 * time.Second

// part is a collector whose metrics are made when they are asked for.
type part struct {
	descs   []*prometheus.Desc
	collect func(ctx context.Context, tell tell) error
}

// tell gives one value of the metric with that place among a part's.
type tell func(desc int, value float64, labels ...string)

// counterFrom is the first of a part's metrics that are counters, none if it is negative.
func (m *Metrics) add(counterFrom int, collect func(ctx context.Context, tell tell) error, descs ...*prometheus.Desc) {
	m.registry.MustRegister(&parted{part{descs, collect}, counterFrom})
}

type parted struct {
	part
	counterFrom int
}

// Describe implements prometheus.Collector.
func (p *parted) Describe(c chan<- *prometheus.Desc) {
	for _, d := range p.descs {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (p *parted) Collect(c chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	err := p.collect(ctx, func(desc int, value float64, labels ...string) {
		kind := prometheus.GaugeValue
		if p.counterFrom >= 0 && desc >= p.counterFrom {
			kind = prometheus.CounterValue
		}
		c <- prometheus.MustNewConstMetric(p.descs[desc], kind, value, labels...)
	})
	if err != nil {
		c <- prometheus.NewInvalidMetric(p.descs[0], err)
	}
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Jobs adds the jobs that are not finished.
func (m *Metrics) Jobs(count func(ctx context.Context) ([]queue.Live, error)) {
	m.add(-1, func(ctx context.Context, tell tell) error {
		all, err := count(ctx)
		for _, l := range all {
			tell(0, float64(l.Jobs), string(l.State), l.Kind)
		}
		return err
	}, desc("runnerd_jobs", "Jobs that are not finished.", "state", "source"))
}

// Admission adds what jobs hold of the capacity, and for what they wait.
func (m *Metrics) Admission(a *runner.Admission) {
	m.add(-1, func(_ context.Context, tell tell) error {
		for i, c := range []runner.Capacity{a.Held(), a.Capacity()} {
			tell(3*i, float64(c.CPU)/1000)
			tell(3*i+1, float64(c.Memory))
			tell(3*i+2, float64(c.Jobs))
		}
		waiting := a.Waiting()
		for _, k := range runner.WaitKinds() {
			if k != runner.WaitDisk { // see Room
				tell(6, float64(waiting[k]), string(k))
			}
		}
		return nil
	},
		desc("runnerd_admission_held_cpus", "Processors that admitted jobs hold."),
		desc("runnerd_admission_held_memory_bytes", "Memory that admitted jobs hold."),
		desc("runnerd_admission_held_jobs", "Admitted jobs."),
		desc("runnerd_admission_capacity_cpus", "Processors that jobs may hold together."),
		desc("runnerd_admission_capacity_memory_bytes", "Memory that jobs may hold together."),
		desc("runnerd_admission_capacity_jobs", "Jobs that may be admitted together."),
		desc("runnerd_jobs_waiting", "Jobs that wait to be admitted, by what they wait for.", "reason"))
}

// Pool adds the sandboxes that are ready.
func (m *Metrics) Pool(ready func() (ready, size int)) {
	m.add(-1, func(_ context.Context, tell tell) error {
		n, size := ready()
		tell(0, float64(n))
		tell(1, float64(size))
		return nil
	}, desc("runnerd_pool_ready_sandboxes", "Sandboxes that wait for a job."), desc("runnerd_pool_size_sandboxes", "Sandboxes that are to wait for a job."))
}

// Disk adds what is known of the disk. Stores are not asked anew.
func (m *Metrics) Disk(figures func() (budget.Figures, error)) {
	m.add(-1, func(_ context.Context, tell tell) error {
		f, err := figures()
		if err != nil {
			return err
		}
		for store, bytes := range f.Stores {
			tell(0, float64(bytes), store)
		}
		for i, n := range []int64{f.Marks.Budget, f.Marks.High, f.Marks.Low, f.Marks.Floor, f.FileSystem.Size, f.FileSystem.Free} {
			tell(i+1, float64(n))
		}
		return nil
	},
		desc("runnerd_disk_store_bytes", "What is kept, as it was measured last.", "store"),
		desc("runnerd_disk_budget_bytes", "What all stores together may take."),
		desc("runnerd_disk_high_bytes", "Above this a job's start prunes."),
		desc("runnerd_disk_low_bytes", "To this is pruned."),
		desc("runnerd_disk_floor_bytes", "What is kept free: below it jobs wait."),
		desc("runnerd_disk_size_bytes", "The size of the file system of the state directory."),
		desc("runnerd_disk_free_bytes", "What is free on it."))
}

// Builders adds the BuildKit workers: how many build and how many wait for a build, by the trust of their scopes.
func (m *Metrics) Builders(count func() map[scope.Trust][2]int) {
	m.add(-1, func(_ context.Context, tell tell) error {
		for trust, n := range count() {
			tell(0, float64(n[0]), string(trust), "busy")
			tell(0, float64(n[1]), string(trust), "idle")
		}
		return nil
	}, desc("runnerd_builders", "BuildKit workers.", "trust", "state"))
}

// Runners adds the forges' runners.
func (m *Metrics) Runners(list func() []gitlab.Registration, of func(name string) gitlab.Contact) {
	m.add(3, func(_ context.Context, tell tell) error {
		for _, r := range list() {
			c := of(r.Name)
			up := 0.
			if c.Health() == gitlab.Online {
				up = 1
			}
			tell(0, up, r.Name)
			if !c.At.IsZero() {
				tell(1, float64(c.At.UnixMilli())/1000, r.Name)
			}
			if !r.TokenExpires.IsZero() {
				tell(2, float64(r.TokenExpires.Unix()), r.Name)
			}
			for _, kind := range gitlab.Kinds() {
				tell(3, float64(c.Answers[kind]), r.Name, kind)
			}
		}
		return nil
	},
		desc("runnerd_runner_up", "1 if the last request to the runner's forge was answered as it should be.", "runner"),
		desc("runnerd_runner_last_contact_timestamp_seconds", "When the forge has answered last.", "runner"),
		desc("runnerd_runner_token_expiry_timestamp_seconds", "When the runner's token ends; absent: never.", "runner"),
		desc("runnerd_runner_polls_total", "Requests for a job, by what came of them.", "runner", "result"))
}
