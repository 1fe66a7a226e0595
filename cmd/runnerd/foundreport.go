package main

import (
	"bytes"
	"strconv"
	"strings"

	gitlabjob "github.com/runnerd/runnerd/runner/gitlab/job"
)

// maxReport bounds what is read of it, in bytes: there may be some hundred patterns.
const maxReport = 256 << 10

// foundReport reads from the error output of what packs what it has found (archive.Command), and then keeps the beginning
// of the rest.
type foundReport struct {
	gitlabjob.Found
	ready chan struct{} // closed when all of it is known
	known bool

	paths, excluded int // how many there are to be
	text            bytes.Buffer
	rest            head
}

func newFoundReport(s gitlabjob.Selection) *foundReport {
	return &foundReport{ready: make(chan struct{}), paths: len(s.Paths), excluded: len(s.Exclude)}
}

func (f *foundReport) Write(p []byte) (int, error) {
	n := len(p)
	for !f.known && len(p) > 0 {
		i := bytes.IndexByte(p, '\n') + 1
		if i == 0 {
			i = len(p)
		}
		if f.text.Len()+i <= maxReport {
			f.text.Write(p[:i])
		}
		p = p[i:]
		if line, ended := strings.CutSuffix(f.text.String(), "\n"); ended {
			f.line(line)
			f.text.Reset()
		}
	}
	_, _ = f.rest.Write(p)
	return n, nil
}

// line reads one. What is none is the beginning of a complaint.
func (f *foundReport) line(text string) {
	what, value, _ := strings.Cut(text, " ")
	number, flag, _ := strings.Cut(value, " ")
	count, _ := strconv.ParseInt(number, 10, 64)
	match := gitlabjob.Match{Entries: count}
	if number == "!" {
		match.Wrong = strings.Map(printableRune, flag)
	}
	switch {
	case what == "path" && len(f.Paths) < f.paths:
		f.Paths = append(f.Paths, match)
	case what == "exclude" && len(f.Excluded) < f.excluded:
		f.Excluded = append(f.Excluded, match)
	case what == "further":
		f.Untracked = count
	case what == "found":
		f.Entries, f.Git = count, flag == "1"
	case text == "pack" && len(f.Paths) == f.paths && len(f.Excluded) == f.excluded:
		f.known = true
		close(f.ready)
	default:
		_, _ = f.rest.Write([]byte(text + "\n"))
	}
}

// head keeps the beginning of what is written to it.
type head struct{ bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	if room := 2000 - h.Len(); room > 0 {
		h.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
