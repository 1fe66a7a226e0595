package registry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"reflect"

	"github.com/sirupsen/logrus"
)

// logSink takes what distribution logs, with logrus, to a slog.Logger. distribution finds its logger in
// the context under a key of an internal type; context puts it there, so that the process-wide one, which
// other libraries use too, stays as it is.
type logSink struct {
	entry *logrus.Entry
	to    *slog.Logger
}

func newLogSink(to *slog.Logger) *logSink {
	s := &logSink{to: to}
	if to == nil {
		s.to = slog.New(slog.DiscardHandler)
	}
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.WarnLevel)
	l.AddHook(s)
	s.entry = logrus.NewEntry(l)
	return s
}

// Levels implements logrus.Hook.
func (s *logSink) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

// Fire implements logrus.Hook. An error with the code of a protocol error is an answer to a client, unless
// it is the unknown one, which is distribution's word for trouble of its own.
func (s *logSink) Fire(e *logrus.Entry) error {
	level := slog.LevelWarn
	if e.Level <= logrus.ErrorLevel {
		level = slog.LevelError
	}
	if code, ok := e.Data["err.code"]; ok && fmt.Sprint(code) != "unknown" {
		level = slog.LevelDebug
	}
	attrs := []slog.Attr{slog.String("component", "registry")}
	for _, key := range []string{"http.request.method", "http.request.uri", "err.code", "err.message", "err.detail", logrus.ErrorKey} {
		if v, ok := e.Data[key]; ok {
			attrs = append(attrs, slog.String(key, fmt.Sprint(v)))
		}
	}
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	s.to.LogAttrs(ctx, level, e.Message, attrs...)
	return nil
}

// context returns one in which distribution finds this logger.
func (s *logSink) context(parent context.Context) context.Context {
	return logContext{parent, s.entry}
}

type logContext struct {
	context.Context
	entry *logrus.Entry
}

func (c logContext) Value(key any) any {
	if t := reflect.TypeOf(key); t.Name() == "loggerKey" && t.PkgPath() == "github.com/distribution/distribution/v3/internal/dcontext" {
		return c.entry
	}
	return c.Context.Value(key)
}
