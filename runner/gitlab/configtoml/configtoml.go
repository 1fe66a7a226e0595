// Package configtoml reads the config.toml of a gitlab-runner, and says of each of its keys what becomes of it here.
//
// Sources: gitlab-runner, docs/configuration/advanced-configuration.md, common/config.go, cache/cacheconfig/cacheconfig.go
// and referees/ (v19.4).
package configtoml

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/script"
	"github.com/runnerd/runnerd/sandbox"
)

// Verdict is what becomes of a key.
type Verdict string

// The verdicts.
const (
	Taken   Verdict = "taken"   // it is taken over
	ByHand  Verdict = "by hand" // it has to be set in runnerd's configuration, or in the pipeline
	Ignored Verdict = "ignored" // it means nothing here
	Refused Verdict = "refused" // it would weaken the sandbox, or cannot be done
	Unknown Verdict = "unknown" // gitlab-runner has no such key
)

// Finding is what becomes of one key.
type Finding struct {
	Line    int     `json:"line"`
	Runner  int     `json:"runner,omitempty"` // its number from 1, 0 for what concerns all of them
	Key     string  `json:"key"`
	Verdict Verdict `json:"verdict"`
	Note    string  `json:"note"` // what it became, or why not
}

// Runner is one of the file's, as far as it is taken over.
type Runner struct {
	Number int    `json:"number"` // from 1
	Line   int    `json:"line"`
	Name   string `json:"name"` // one that may be a registration's
	// Refused says why it is not taken over; empty: it is.
	Refused []string `json:"refused,omitempty"`
	// Widens says which of its restrictions would be lost; it is taken over only if that is wanted.
	Widens []string `json:"widens,omitempty"`

	Description string `json:"description,omitempty"`
	URL         string `json:"url,omitempty"`
	CloneURL    string `json:"clone_url,omitempty"`
	Token       string `json:"-"`
	// TokenObtained is zero if the file does not say.
	TokenObtained time.Time          `json:"token_obtained,omitzero"`
	CAFile        string             `json:"ca_file,omitempty"`
	Concurrent    int                `json:"concurrent,omitempty"`
	Nesting       sandbox.Nesting    `json:"sandbox,omitempty"`
	Image         string             `json:"image,omitempty"`
	Pull          sandbox.PullPolicy `json:"pull,omitempty"`
	Limits        sandbox.Limits     `json:"limits,omitzero"`
	Env           []string           `json:"-"` // it may hold secrets
	Builds        string             `json:"builds,omitempty"`
	OutputLimit   int64              `json:"output_limit,omitempty"` // in bytes
	Scripts       script.Scripts     `json:"-"`                      // as the environment

	executor string
}

// Report is what becomes of a file.
type Report struct {
	Runners  []Runner  `json:"runners"`
	Findings []Finding `json:"findings"`
}

// Options say what else is known.
type Options struct {
	// Dir is the file's directory. gitlab-runner takes a forge's certificates from its certs/HOST.crt.
	Dir string
	// Exists reports whether there is a file; nil: there is none.
	Exists func(path string) bool
}

// maxFile bounds the file in bytes.
const maxFile = 4 << 20

// Parse reads a file. Its error says where it is no TOML.
func Parse(text []byte, o Options) (*Report, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("the file has more than %d MiB", maxFile>>20)
	}
	keys, err := read(text)
	if err != nil {
		return nil, err
	}
	b := builder{options: o, rules: rules(), sections: sections(), report: &Report{Runners: []Runner{}, Findings: []Finding{}}}
	if b.options.Exists == nil {
		b.options.Exists = func(string) bool { return false }
	}
	for _, k := range keys {
		b.key(k)
	}
	b.finish()
	return b.report, nil
}

// builder makes a report of keys.
type builder struct {
	options    Options
	rules      map[string]rule
	sections   []section
	report     *Report
	concurrent int
	s3         s3
	s3Line     int
}

// find adds what becomes of a key.
func (b *builder) find(k key, v Verdict, format string, args ...any) {
	b.report.Findings = append(b.report.Findings, Finding{Line: k.line, Runner: k.runner, Key: k.path, Verdict: v, Note: fmt.Sprintf(format, args...)})
}

// runner is the one that a key belongs to.
func (b *builder) runner(k key) *Runner {
	for len(b.report.Runners) < k.runner {
		b.report.Runners = append(b.report.Runners, Runner{Number: len(b.report.Runners) + 1})
	}
	return &b.report.Runners[k.runner-1]
}

// key judges one key.
func (b *builder) key(k key) {
	if k.runner > 0 {
		if r := b.runner(k); r.Line == 0 {
			r.Line = k.line
		}
	}
	if k.runner == 0 && strings.HasPrefix(k.path, "runners.") {
		b.find(k, Refused, "it belongs to no runner: write [[runners]] before it")
		return
	}
	if k.table {
		b.section(k)
		return
	}
	if b.section(k) {
		return
	}
	r, ok := b.rules[k.path]
	if !ok {
		if r, ok = inMap(k.path); !ok {
			b.find(k, Unknown, "gitlab-runner has no such key: is it misspelt?")
			return
		}
	}
	if r.take == nil {
		b.find(k, r.verdict, "%s", r.note)
		return
	}
	v, note := r.take(b, k)
	b.find(k, v, "%s", note)
}

// section judges a key by the section that it is in, if there is nothing to tell apart in that, once for each runner.
func (b *builder) section(k key) bool {
	for _, s := range b.sections {
		if k.path != s.path && !strings.HasPrefix(k.path, s.path+".") {
			continue
		}
		if !slices.ContainsFunc(b.report.Findings, func(f Finding) bool { return f.Runner == k.runner && f.Key == s.path }) {
			k.path = s.path
			b.find(k, s.verdict, "%s", s.note)
		}
		return true
	}
	return false
}

// finish judges what takes more than one key.
func (b *builder) finish() {
	names := map[string]bool{}
	for i := range b.report.Runners {
		r := &b.report.Runners[i]
		if r.executor == "" {
			r.refuse("executor: it has none, so it runs on the machine itself (shell)")
		}
		if r.URL == "" {
			r.refuse("url: it is missing")
		}
		if r.Token == "" {
			r.refuse("token: it is missing")
		}
		if len(r.Nesting) == 0 {
			r.Nesting = sandbox.Nesting{sandbox.Container}
		}
		if b.concurrent > 0 && (r.Concurrent == 0 || r.Concurrent > b.concurrent) {
			r.Concurrent = b.concurrent
		}
		b.certificates(r)
		r.Name = unique(names, nameOf(r.Description, r.Number))
		names[r.Name] = true
	}
	if b.s3Line > 0 {
		b.report.Findings = append(b.report.Findings, Finding{Line: b.s3Line, Key: "runners.cache.s3", Verdict: ByHand, Note: b.s3.hint()})
	}
	slices.SortStableFunc(b.report.Findings, func(x, y Finding) int { return x.Line - y.Line })
}

func (r *Runner) refuse(why string) { r.Refused = append(r.Refused, why) }

// certificates looks for those that gitlab-runner takes by itself.
func (b *builder) certificates(r *Runner) {
	_, host, ok := strings.Cut(r.URL, "://")
	if !ok || r.CAFile != "" || b.options.Dir == "" {
		return
	}
	host, _, _ = strings.Cut(host, "/")
	host, _, _ = strings.Cut(host, ":")
	file := filepath.Join(b.options.Dir, "certs", host+".crt")
	if host == "" || filepath.Dir(file) != filepath.Join(b.options.Dir, "certs") || !b.options.Exists(file) {
		return
	}
	r.CAFile = file
	b.report.Findings = append(b.report.Findings, Finding{
		Line: r.Line, Runner: r.Number, Key: "certs/" + host + ".crt", Verdict: Taken, Note: "ca_file: " + file + ": it must stay there",
	})
}

// nameOf is a registration's name made of a description.
func nameOf(description string, number int) string {
	name := strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
			return c
		}
		return '-'
	}, description)
	for strings.Contains(name, "--") {
		name = strings.ReplaceAll(name, "--", "-")
	}
	name = strings.Trim(fmt.Sprintf("%.55s", strings.TrimLeft(name, "-._")), "-._")
	if name == "" {
		return fmt.Sprintf("gitlab-runner-%d", number)
	}
	return name
}

func unique(taken map[string]bool, name string) string {
	for i, base := 2, name; taken[name]; i++ {
		name = fmt.Sprintf("%s-%d", base, i)
	}
	return name
}
