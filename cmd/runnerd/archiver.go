package main

import (
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
	"github.com/runnerd/runnerd/cmd/runnerd/config"
	gitlabjob "github.com/runnerd/runnerd/runner/gitlab/job"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
)

// archiver packs and extracts files of a job, inside its sandbox, by the sandbox's init (archive.Command): no path of a
// job's is resolved outside. It is a job.Archiver, of all kinds of jobs.
type archiver struct{ maxBytes, maxFiles int64 }

func newArchiver(limits config.Cache) archiver {
	return archiver{maxBytes: int64(limits.MaxEntry), maxFiles: limits.MaxFiles}
}

// counts are what the init says that it has packed or extracted. It is the job's word, and for people only.
type counts struct{ files, bytes, skipped, git int64 }

func (c counts) String() string {
	text := fmt.Sprintf("%d files", c.files)
	if c.skipped > 0 {
		text += fmt.Sprintf(" without %d sockets, FIFOs and devices", c.skipped)
	}
	return text
}

// readCounts reads what there is of them: the init may be another one.
func readCounts(text string) (c counts) {
	_, _ = fmt.Sscan(text, &c.files, &c.bytes, &c.skipped, &c.git)
	return c
}

const (
	// pipeGrace is how long what packs may leave its output open when it has ended, in a child for example.
	pipeGrace = 2 * time.Second
	// undoGrace is how long what extracts may take to undo what it has done, when nobody wants it any more.
	undoGrace = 5 * time.Second
)

// Pack begins to pack; see job.Archiver.
func (a archiver) Pack(ctx context.Context, on sandbox.Host, s gitlabjob.Selection) (gitlabjob.Packing, error) {
	p, err := a.pack(ctx, on, s)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (a archiver) pack(ctx context.Context, on sandbox.Host, s gitlabjob.Selection) (*packing, error) {
	args := []string{"pack", strconv.FormatInt(a.maxBytes, 10), "", "format=" + string(s.Format), "level=" + strconv.Itoa(s.Level)}
	for _, pattern := range s.Exclude {
		args = append(args, "exclude="+pattern)
	}
	if s.Untracked != nil {
		args = append(args, "further=stdin")
	}
	if s.Beneath {
		args = append(args, "beneath=yes")
	}
	args = append(append(args, "--"), s.Paths...)
	r, w, err := cache.Pipe()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &packing{r: r, cancel: cancel, found: newFoundReport(s), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = a.run(ctx, on, sandbox.Process{Args: args, Dir: s.Dir, User: s.User, Stdin: s.Untracked, Stdout: w, Stderr: p.found}, &p.found.rest)
		p.sum = readCounts(p.found.rest.String())
		_ = w.Close()
		_ = r.SetReadDeadline(time.Now().Add(pipeGrace))
	}()
	select {
	case <-p.found.ready:
		return p, nil
	case <-p.done:
	}
	if p.err == nil && !p.found.known {
		p.err = errors.New("the sandbox's init does not say what it packs")
	}
	if p.err != nil {
		return nil, errors.Join(p.err, p.Close())
	}
	return p, nil
}

// packing is the output of what packs.
type packing struct {
	r      *os.File
	cancel context.CancelFunc
	found  *foundReport

	done chan struct{} // closed when it has ended, with
	sum  counts
	err  error
}

func (p *packing) Found() gitlabjob.Found { return p.found.Found }

// Read ends with io.EOF only if all was packed.
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
	}
	return 0, io.EOF
}

// Close ends what packs, if it has not ended.
func (p *packing) Close() error {
	p.cancel()
	<-p.done
	return p.r.Close()
}

// Extract extracts an archive; see job.Archiver.
func (a archiver) Extract(ctx context.Context, on sandbox.Host, t gitlabjob.Target, size int64, from func(io.Writer) error) (gitlabjob.Extracted, error) {
	sum, err := a.extract(ctx, on, t, size, from)
	return gitlabjob.Extracted{Files: sum.files, Skipped: sum.skipped, Git: sum.git > 0}, err
}

func (a archiver) extract(ctx context.Context, on sandbox.Host, t gitlabjob.Target, size int64, from func(io.Writer) error) (counts, error) {
	args := []string{"unzip", strconv.FormatInt(a.maxBytes, 10), ""}
	tar := t.Format == gitlabjob.FormatTar
	if tar {
		args = []string{"extract", strconv.FormatInt(size, 10), ""}
	}
	r, w, err := cache.Pipe()
	if err != nil {
		return counts{}, err
	}
	running, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	defer context.AfterFunc(ctx, func() {
		if !tar {
			kill()
			return
		}
		_ = w.Close() // the archive is cut off, and what was extracted of it undone
		time.AfterFunc(undoGrace, kill)
	})()
	sent := make(chan error, 1)
	go func() {
		to := &sink{w: w}
		err := from(to)
		if to.failed { // nobody reads: what extracts has ended, and says why
			err = nil
		} else if err != nil && !tar {
			kill() // before it takes the end of the stream for that of the archive
		}
		_ = w.Close()
		sent <- err
	}()
	report, complaint := &head{}, &head{}
	err = a.run(running, on, sandbox.Process{Args: args, Dir: t.Dir, User: t.User, Stdin: r, Stdout: report, Stderr: complaint}, complaint)
	_ = r.Close() // it may have left some, which nobody reads now
	bad := <-sent
	switch {
	case ctx.Err() != nil && err != nil:
		err = context.Cause(ctx)
	case bad != nil:
		err = bad // of which the other is the consequence
	}
	return readCounts(report.String()), err
}

// sink notes whether writing has failed.
type sink struct {
	w      io.Writer
	failed bool
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.failed = s.failed || err != nil
	return n, err
}

// run runs the init's archiver. The third of p.Args becomes the most files; complaint is what it says when it fails.
func (a archiver) run(ctx context.Context, on sandbox.Host, p sandbox.Process, complaint *head) error {
	p.Args[2] = strconv.FormatInt(a.maxFiles, 10)
	p.Args, p.Env = append([]string{container.InitPath, "archive"}, p.Args...), []string{}
	exit, err := on.Exec(ctx, p)
	if err != nil || exit.Success() {
		return err
	}
	text := strings.TrimSpace(complaint.String())
	if text == "" || exit.Signal != 0 {
		text = fmt.Sprintf("%s (%s)", text, exit)
	}
	return &gitlabjob.PackError{Message: strings.Map(printableRune, text)}
}

func printableRune(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return '?'
}
