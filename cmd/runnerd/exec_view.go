package main

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// traceView shows a job's trace as it comes: each line with the job's name before it, and of the sections that are the
// runner's own, or collapsed by the script, only the headings.
type traceView struct {
	w       io.Writer
	prefix  string
	colours bool // as the trace has them
	all     bool // show what is in sections, too

	partial  []byte
	sections []section
	held     []string // the last lines that were not shown
	scripted bool     // the script has begun
	begun    bool     // there was a line
	stamped  bool     // lines begin with the time
}

type section struct {
	name      string
	collapsed bool
	heading   bool // what comes next is its heading
}

// ownSections are those that gitlab-runner has around a script (shells/abstract.go, common/build.go).
var ownSections = []string{
	"resolve_secrets", "prepare_executor", "prepare_script", "get_sources", "restore_cache", "download_artifacts", "archive_cache",
	"archive_cache_on_failure", "upload_artifacts_on_success", "upload_artifacts_on_failure", "cleanup_file_variables",
}

const (
	maxViewLine = 64 << 10 // bytes of a line, more is cut into several
	maxHeld     = 100      // lines
)

var (
	sectionMark = regexp.MustCompile("section_(start|end):[0-9]+:([A-Za-z0-9._-]+)(\\[[^\\]\r\n]*\\])?\r(?:\x1b\\[0K)?")
	// lineStamp is what gitlab-runner writes before each line: the time, the stream's number, O or E, and + if the line
	// before goes on (common/buildlogger/internal/timestamper.go).
	lineStamp = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z [0-9a-f]{2}[OE][ +]`)
	// What a terminal would obey: colours alone are left.
	escapes   = regexp.MustCompile("\x1b(?:\\[[0-9;:<=>?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|[@-Z\\\\^_])")
	onlyColor = regexp.MustCompile("^\x1b\\[[0-9;:]*m$")
)

// Write takes a part of the trace.
func (v *traceView) Write(p []byte) (int, error) {
	v.partial = append(v.partial, p...)
	for {
		i := bytes.IndexByte(v.partial, '\n')
		if i < 0 && len(v.partial) < maxViewLine {
			return len(p), nil
		}
		end, next := i, i+1
		if i < 0 || i > maxViewLine {
			end, next = maxViewLine, maxViewLine
		}
		line := string(v.partial[:end])
		v.partial = v.partial[next:]
		if err := v.line(line); err != nil {
			return 0, err
		}
	}
}

// end shows what is left, and of a job that failed before its script what was not shown.
func (v *traceView) end(failed bool) error {
	if len(v.partial) > 0 {
		rest := string(v.partial)
		v.partial = nil
		if err := v.line(rest); err != nil {
			return err
		}
	}
	if failed && !v.scripted {
		for _, line := range v.held {
			if err := v.print(line); err != nil {
				return err
			}
		}
	}
	v.sections, v.held = nil, nil
	return nil
}

// line shows one line: what is between the marks of sections in it.
func (v *traceView) line(line string) error {
	marked := false
	stamp := lineStamp.FindString(line)
	if !v.begun {
		v.begun, v.stamped = true, stamp != ""
	}
	if v.stamped {
		line = line[len(stamp):]
		marked = strings.HasSuffix(stamp, "+") // the rest of a line, which may be nothing
	}
	for {
		m := sectionMark.FindStringSubmatchIndex(line)
		if m == nil {
			break
		}
		marked = true
		if err := v.text(line[:m[0]], true); err != nil {
			return err
		}
		name := line[m[4]:m[5]]
		if line[m[2]:m[3]] == "start" {
			options := ""
			if m[6] >= 0 {
				options = line[m[6]:m[7]]
			}
			v.start(name, strings.Contains(options, "collapsed=true"))
		} else {
			v.leave(name)
		}
		line = line[m[1]:]
	}
	return v.text(line, marked)
}

func (v *traceView) start(name string, collapsed bool) {
	collapsed = collapsed || slices.Contains(ownSections, name)
	v.sections = append(v.sections, section{name, collapsed, true})
	v.scripted = v.scripted || name == "step_script"
	if collapsed {
		v.held = nil
	}
}

func (v *traceView) leave(name string) {
	for i, s := range slices.Backward(v.sections) {
		if s.name == name {
			v.sections = v.sections[:i]
			return
		}
	}
}

// text shows a line, or a part of one; empty parts are not lines.
func (v *traceView) text(text string, part bool) error {
	text = v.clean(text)
	if part && strings.TrimSpace(escapes.ReplaceAllString(text, "")) == "" {
		return nil
	}
	hidden := false
	for i := range v.sections {
		s := &v.sections[i]
		if s.heading && i == len(v.sections)-1 {
			s.heading = false
			break // it is shown if those around it are
		}
		hidden = hidden || s.collapsed
	}
	if hidden && !v.all {
		if v.held = append(v.held, text); len(v.held) > maxHeld {
			v.held = v.held[1:]
		}
		return nil
	}
	return v.print(text)
}

// clean leaves of a line what a terminal shows in the end, and no sequences but colours.
func (v *traceView) clean(text string) string {
	text = strings.TrimRight(text, "\r")
	if i := strings.LastIndexByte(text, '\r'); i >= 0 {
		text = text[i+1:]
	}
	text = escapes.ReplaceAllStringFunc(text, func(e string) string {
		if v.colours && onlyColor.MatchString(e) {
			return e
		}
		return ""
	})
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' && r != '\x1b' || r == 0x7f {
			return -1
		}
		return r
	}, text)
}

func (v *traceView) print(text string) error {
	end := "\n"
	if v.colours && strings.Contains(text, "\x1b") {
		end = "\x1b[0m\n"
	}
	_, err := fmt.Fprintf(v.w, "%s%s%s", v.prefix, text, end)
	return err
}
