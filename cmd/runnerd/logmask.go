package main

import (
	"bytes"
	"slices"
	"time"

	bkclient "github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/runnerd/runnerd/runner"
)

// logMask hides secrets in the logs of a build's steps. BuildKit cuts them into records at any place, so the
// beginning of what may be a secret is held back until more of that log comes, or the build ends.
type logMask struct {
	masker runner.Masker // nil hides nothing
	logs   map[stepLog]*maskedLog
}

type stepLog struct {
	step   digest.Digest
	stream int
}

type maskedLog struct {
	out  bytes.Buffer
	in   *runner.MaskWriter
	last time.Time // when the last record came
}

func newLogMask(out runner.Output) *logMask {
	masker, _ := out.(runner.Masker)
	return &logMask{masker, map[stepLog]*maskedLog{}}
}

// hide replaces the data of the status' log records by what may be shown of it by now.
func (m *logMask) hide(status *bkclient.SolveStatus) {
	if m.masker == nil {
		return
	}
	for _, record := range status.Logs {
		key := stepLog{record.Vertex, record.Stream}
		l := m.logs[key]
		if l == nil {
			l = &maskedLog{}
			l.in = m.masker.Masked(&l.out)
			m.logs[key] = l
		}
		_, _ = l.in.Write(record.Data)
		record.Data, l.last = l.take(), record.Timestamp
	}
	status.Logs = slices.DeleteFunc(status.Logs, func(record *bkclient.VertexLog) bool { return len(record.Data) == 0 })
}

// rest is what was held back, when the build has ended.
func (m *logMask) rest() *bkclient.SolveStatus {
	var status bkclient.SolveStatus
	for key, l := range m.logs {
		_ = l.in.Flush()
		if data := l.take(); len(data) > 0 {
			status.Logs = append(status.Logs, &bkclient.VertexLog{Vertex: key.step, Stream: key.stream, Data: data, Timestamp: l.last})
		}
	}
	return &status
}

func (l *maskedLog) take() []byte {
	defer l.out.Reset()
	return bytes.Clone(l.out.Bytes())
}
