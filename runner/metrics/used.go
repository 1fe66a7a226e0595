package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/runnerd/runnerd/sandbox"
)

// used are the metrics of what finished jobs have used, told apart by the parts of their sandboxes. Payload and machinery
// are told apart by the label kind. The words for parts, stages and ways are package sandbox's.
type used struct {
	cpu, disk, copied, waits *prometheus.CounterVec
	memory, stages           *prometheus.HistogramVec
}

func newUsed() used {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"source"}, labels...))
	}
	return used{
		cpu:    counter("runnerd_sandbox_cpu_seconds_total", "Processor time that finished jobs' sandboxes used, by part; kind: payload or machinery.", "part", "kind"),
		disk:   counter("runnerd_sandbox_disk_bytes_total", "What finished jobs' sandboxes have read from and written to their own disks, by part.", "part", "kind", "direction"),
		copied: counter("runnerd_sandbox_copied_bytes_total", "Bytes that went from one layer to another once more, by their way: pull, load, context, restore, save.", "way"),
		waits:  counter("runnerd_sandbox_pressure_seconds_total", "For how long some processes of finished jobs' sandboxes waited for a resource; nothing where the kernel does not tell.", "resource"),
		memory: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "runnerd_sandbox_memory_average_bytes", Help: "Memory of finished jobs' sandboxes over their time, payload and machinery.",
			Buckets: []float64{4 << 20, 16 << 20, 64 << 20, 128 << 20, 256 << 20, 512 << 20, 1 << 30, 2 << 30, 4 << 30, 8 << 30, 16 << 30},
		}, []string{"source", "kind"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "runnerd_sandbox_stage_duration_seconds", Help: "The steps of opening and closing finished jobs' sandboxes; those of one sandbox may overlap.", Buckets: jobBuckets(),
		}, []string{"source", "phase", "stage"}),
	}
}

func (u used) register(r *prometheus.Registry) {
	r.MustRegister(u.cpu, u.disk, u.copied, u.waits, u.memory, u.stages)
}

// add adds what a finished job has used.
func (u used) add(source string, x sandbox.Usage) {
	if len(x.Parts) == 0 {
		return
	}
	for _, p := range x.Parts {
		part, kind := string(p.Name), kindOf(p.Payload)
		u.cpu.WithLabelValues(source, part, kind).Add(p.CPU.Seconds())
		u.disk.WithLabelValues(source, part, kind, "read").Add(float64(p.Read))
		u.disk.WithLabelValues(source, part, kind, "written").Add(float64(p.Written))
	}
	for _, payload := range []bool{true, false} {
		u.memory.WithLabelValues(source, kindOf(payload)).Observe(float64(x.Sum(payload).MemoryAverage))
	}
	for _, c := range x.Copied {
		u.copied.WithLabelValues(source, string(c.Way)).Add(float64(c.Bytes))
	}
	for phase, stages := range map[string][]sandbox.Stage{phaseOpen: x.SetUp, phaseClose: x.TearDown} {
		for _, s := range stages {
			u.stages.WithLabelValues(source, phase, string(s.Name)).Observe(s.Took.Seconds())
		}
	}
	if p := x.Pressure; p != nil {
		u.waits.WithLabelValues(source, "cpu").Add(p.CPU.Some.Seconds())
		u.waits.WithLabelValues(source, "memory").Add(p.Memory.Some.Seconds())
		u.waits.WithLabelValues(source, "io").Add(p.IO.Some.Seconds())
	}
}

func kindOf(payload bool) string {
	if payload {
		return "payload"
	}
	return "machinery"
}
