package rig

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/sandbox/container"
)

// Kind is a kind of sandbox whose start and memory are measured.
type Kind struct {
	Name string
	// Open starts one that is ready for work. Its id is of [a-z0-9-].
	Open func(ctx context.Context, id string) (closing func(context.Context) error, err error)
}

// settle is how long machinery may take until it has ended what it does after a start.
const settle = 2 * time.Second

// Memory starts more and more instances of a kind, and finds how long each took and what memory all of them have: the
// proportional set sizes of all their processes and of the machinery's on the machine, and the kernel's own memory. It
// stops before instances would take more than half of the memory that is free.
func Memory(ctx context.Context, d *container.Driver, k Kind, counts []int, say func(format string, args ...any)) (result measure.KindResult, err error) {
	result = measure.KindResult{Name: k.Name}
	var undo []func(context.Context) error
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout+time.Duration(len(undo))*time.Second)
		defer cancel()
		err = errors.Join(err, undoAll(closing, &undo))
	}()
	before, err := memoryNow(d)
	if err != nil {
		return result, err
	}
	result.Points = []measure.MemoryPoint{{}}
	kernel := before.kernel
	for _, count := range counts {
		if last := result.Points[len(result.Points)-1]; last.Instances > 0 {
			each := last.Bytes / int64(last.Instances)
			if free, err := meminfo("MemAvailable"); err != nil {
				return result, err
			} else if int64(count-last.Instances)*each > free/2 {
				result.Skipped = append(result.Skipped, count)
				continue
			}
		}
		say("%s: %d at once", k.Name, count)
		for len(undo) < count {
			began := time.Now()
			closing, err := k.Open(ctx, fmt.Sprintf("%s-%d", k.Name, len(undo)))
			if err != nil {
				return result, fmt.Errorf("start %s number %d: %w", k.Name, len(undo)+1, err)
			}
			undo = append(undo, closing)
			result.Starts = append(result.Starts, time.Since(began).Seconds()*1000)
		}
		select {
		case <-ctx.Done():
			return result, context.Cause(ctx)
		case <-time.After(settle):
		}
		now, err := memoryNow(d)
		if err != nil {
			return result, err
		}
		result.Points = append(result.Points, measure.MemoryPoint{
			Instances: count, Bytes: now.pss - before.pss + max(0, now.kernel-kernel), Kernel: max(0, now.kernel-kernel),
		})
	}
	result.Fit()
	return result, nil
}

type memory struct{ pss, kernel int64 } // bytes

func memoryNow(d *container.Driver) (m memory, err error) {
	inside, machinery := d.Processes()
	for _, pid := range append(inside, machinery...) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // it has ended
		}
		m.pss += kilobytes(text, "Pss")
	}
	for _, key := range []string{"SUnreclaim", "KernelStack", "PageTables", "SecPageTables", "Percpu"} {
		bytes, err := meminfo(key)
		if err != nil {
			return m, err
		}
		m.kernel += bytes
	}
	return m, nil
}

// meminfo is a line of /proc/meminfo in bytes (proc(5)); 0 if there is none.
func meminfo(key string) (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	return kilobytes(text, key), err
}

// kilobytes is the value of a line "key:  123 kB", in bytes.
func kilobytes(text []byte, key string) int64 {
	for scan := bufio.NewScanner(bytes.NewReader(text)); scan.Scan(); {
		name, value, ok := strings.Cut(scan.Text(), ":")
		if ok && name == key {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}
