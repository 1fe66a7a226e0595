package metrics

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/runnerd/runnerd/runner"
)

// Source wraps a source of jobs, and counts what the jobs write.
func (m *Metrics) Source(of runner.Source) runner.Source { return source{of, m} }

type source struct {
	runner.Source
	m *Metrics
}

// Next waits for a job.
func (s source) Next(ctx context.Context) (runner.Assignment, error) {
	a, err := s.Source.Next(ctx)
	if err != nil {
		return a, err
	}
	a.Reporter = &reporter{
		Reporter: a.Reporter, began: time.Now(), source: a.Kind,
		first: s.m.firstOutput.WithLabelValues(a.Kind), bytes: s.m.logBytes,
	}
	return a, nil
}

// reporter counts what goes through it.
type reporter struct {
	runner.Reporter
	began  time.Time
	source string
	spoken atomic.Bool
	first  prometheus.Observer
	bytes  *prometheus.CounterVec
}

// Stream is the job's, counted.
func (r *reporter) Stream(s runner.Stream) io.Writer {
	return &counted{r.Reporter.Stream(s), r, r.bytes.WithLabelValues(r.source, streamName(s)), s != runner.Notice}
}

func streamName(s runner.Stream) string {
	switch s {
	case runner.Stdout:
		return "stdout"
	case runner.Stderr:
		return "stderr"
	case runner.Notice:
		return "notice"
	case runner.Progress:
		return "progress"
	}
	return "other"
}

// counted is a stream of a job.
type counted struct {
	io.Writer
	r     *reporter
	bytes prometheus.Counter
	its   bool // what the job says, not what runnerd says of it
}

// Write writes.
func (w *counted) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.bytes.Add(float64(n))
	if w.its && n > 0 && !w.r.spoken.Swap(true) {
		w.r.first.Observe(time.Since(w.r.began).Seconds())
	}
	return n, err
}
