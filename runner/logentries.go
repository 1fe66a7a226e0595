package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/runnerd/runnerd/budget"
)

// Budget is the store as the disk's budget has it: every log of a job that has ended can be removed. The jobs stay
// known.
func (s *LogStore) Budget() budget.Store { return logEntries{s} }

type logEntries struct{ *LogStore }

// Name is "logs".
func (s logEntries) Name() string { return "logs" }

// Usage is what all logs take.
func (s logEntries) Usage(ctx context.Context) (int64, error) { return budget.DiskUsage(ctx, s.dir) }

// Entries are the logs. Those that are being written are in use.
func (s logEntries) Entries(context.Context) ([]budget.Entry, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list the logs: %w", err)
	}
	var out []budget.Entry
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), logSuffix)
		info, err := f.Info()
		if !ok || errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("list the logs: %w", err)
		}
		out = append(out, budget.Entry{
			ID: id, Description: "log of job " + id, Bytes: diskSize(info), Created: info.ModTime(), LastUsed: info.ModTime(), InUse: s.Live(id),
		})
	}
	return out, nil
}

// Remove removes logs.
func (s logEntries) Remove(ctx context.Context, ids []string) (freed int64, err error) {
	var errs []error
	for _, id := range ids {
		if ctx.Err() != nil {
			return freed, errors.Join(append(errs, context.Cause(ctx))...)
		}
		if s.Live(id) {
			continue
		}
		n, err := s.discard(id)
		if err != nil && !errors.Is(err, ErrNoLog) {
			errs = append(errs, err)
		}
		freed += n
	}
	return freed, errors.Join(errs...)
}

// discard removes one log and says what that has freed.
func (s logEntries) discard(id string) (int64, error) {
	path, err := s.path(id)
	if err != nil {
		return 0, err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	return diskSize(info), s.LogStore.Remove(id)
}
