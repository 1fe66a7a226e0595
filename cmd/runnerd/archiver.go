package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/runnerd/runnerd/cache"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
)

// archiver packs and extracts files of a job, inside its sandbox and as its user, by the sandbox's init: no path of
// a job's is resolved outside.
type archiver struct {
	dir, user          string
	maxBytes, maxFiles int64
}

// counts are what the init says that it has packed or extracted. It is the job's word, and for people only.
type counts struct{ files, bytes, skipped int64 }

func (c counts) String() string {
	text := fmt.Sprintf("%d files", c.files)
	if c.skipped > 0 {
		text += fmt.Sprintf(" without %d sockets, FIFOs and devices", c.skipped)
	}
	return text
}

// packError is a failure in the sandbox, which is the job's.
type packError struct{ message string }

func (e *packError) Error() string { return e.message }

// pipeGrace is how long what packs may leave its output open when it has ended, in a child for example.
const pipeGrace = 2 * time.Second

// pack has save read a tar of what paths match. What save reads ends with io.EOF only if all was packed.
func (p archiver) pack(ctx context.Context, on sandbox.Host, paths []string, save func(io.Reader) error) (counts, error) {
	r, w, err := cache.Pipe()
	if err != nil {
		return counts{}, err
	}
	defer func() { _ = r.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	packed := &packing{r: r, done: make(chan struct{})}
	go func() {
		defer close(packed.done)
		packed.sum, packed.err = p.run(ctx, on, append([]string{"pack", strconv.FormatInt(p.maxBytes, 10)}, paths...), nil, w)
		_ = w.Close()
		_ = r.SetReadDeadline(time.Now().Add(pipeGrace))
	}()
	err = save(packed)
	if err != nil {
		cancel() // what packs would otherwise wait for a reader
	}
	<-packed.done
	if err == nil && !packed.ended {
		err = errors.New("the archive was not read to its end")
	}
	return packed.sum, err
}

// packing is the output of what packs.
type packing struct {
	r     *os.File
	ended bool

	done chan struct{} // closed when it has ended, with
	sum  counts
	err  error
}

func (p *packing) Read(buf []byte) (int, error) {
	n, err := p.r.Read(buf)
	if n > 0 || err == nil {
		return n, nil
	}
	<-p.done
	switch {
	case p.err != nil:
		return 0, p.err
	case !errors.Is(err, io.EOF):
		return 0, fmt.Errorf("read what was packed: %w", err)
	case p.sum.files == 0:
		return 0, &packError{"no file matches its paths"}
	}
	p.ended = true
	return 0, io.EOF
}

// extract extracts a tar of a size. What was extracted of one that fails is removed.
func (p archiver) extract(ctx context.Context, on sandbox.Host, size int64, from *cache.Reader) (counts, error) {
	r, w, err := cache.Pipe()
	if err != nil {
		return counts{}, err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := from.WriteTo(w)
		sent <- errors.Join(err, w.Close())
	}()
	sum, err := p.run(ctx, on, []string{"extract", strconv.FormatInt(size, 10)}, r, nil)
	_ = r.Close() // it may have left some, which nobody reads now
	<-sent
	if bad := from.Err(); bad != nil && ctx.Err() == nil {
		err = bad // of which the other is the consequence
	}
	return sum, err
}

// run runs the init's archiver. args are the command, the bytes, and paths.
func (p archiver) run(ctx context.Context, on sandbox.Host, args []string, stdin, stdout *os.File) (sum counts, err error) {
	report, complaint := &head{}, &head{}
	args = append([]string{container.InitPath, "archive", args[0], args[1], strconv.FormatInt(p.maxFiles, 10)}, args[2:]...)
	process := sandbox.Process{Args: args, Env: []string{}, Dir: p.dir, User: p.user, Stderr: complaint}
	if stdin != nil {
		process.Stdin, process.Stdout = stdin, report
	} else {
		process.Stdout, report = stdout, complaint
	}
	exit, err := on.Exec(ctx, process)
	if err != nil {
		return sum, err
	}
	if !exit.Success() {
		text := strings.TrimSpace(complaint.String())
		if text == "" || exit.Signal != 0 {
			text = fmt.Sprintf("%s (%s)", text, exit)
		}
		return sum, &packError{strings.Map(printableRune, text)}
	}
	_, _ = fmt.Sscan(report.String(), &sum.files, &sum.bytes, &sum.skipped)
	return sum, nil
}

func printableRune(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return '?'
}

// head keeps the beginning of what is written to it.
type head struct{ bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	if room := 2000 - h.Len(); room > 0 {
		h.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
