package ledger

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// why says why a step was run, and which local files differ.
func (e *explainer) why(ctx context.Context, i int) (string, []Change, error) {
	s := e.build.Steps[i]
	if s.NoCache {
		return "the build was told not to use the cache", nil, nil
	}
	var was *Step
	if e.before != nil {
		was = e.before.counterpart(s)
	}
	if was != nil {
		if why, files := e.changed(s, *was); why != "" {
			return why, files, nil
		}
	}
	if in, cause := e.anew(i); in >= 0 {
		if strings.HasPrefix(cause, firstBuild) {
			return cause, nil, nil
		}
		return fmt.Sprintf("an earlier step was run anew: %q: %s", e.build.Steps[in].Name, cause), nil, nil
	}
	if why, err := e.gone(ctx, s); why != "" || err != nil {
		return why, nil, err
	}
	switch {
	case e.before == nil:
		return firstBuild + e.build.Scope.String(), nil, nil
	case was == nil:
		return "the instruction is new since job " + e.before.Job, nil, nil
	case s.Key == "":
		return "not known: there are too many local files to be compared", nil, nil
	case was.Key == s.Key: // nobody has run it
		return "its result was not in the cache; when it went is not known", nil, nil
	}
	return "not known: what goes into it differs from job " + e.before.Job + ", and the ledger cannot tell how", nil, nil
}

const firstBuild = "the first build of this target in "

// gone tells what is known of a step's result that was there once.
func (e *explainer) gone(ctx context.Context, s Step) (string, error) {
	w, err := e.writer(ctx, s.Key)
	if w == nil {
		return "", err
	}
	var at int64
	own, above := readable(e.build.Scope)
	if err := e.ledger.db.QueryRowContext(ctx, `SELECT coalesce(max(at), 0) FROM revoked WHERE key = ? AND scope IN (?, ?) AND at <= ?`, s.Key, own, above, nano(e.build.Ended)).Scan(&at); err != nil {
		return "", err
	}
	since := fmt.Sprintf("job %s had the same at %s", w.Job, w.At.Local().Format(time.DateTime))
	switch {
	case at > nano(w.At):
		return fmt.Sprintf("its result was revoked at %s", time.Unix(0, at).Local().Format(time.DateTime)), nil
	case w.Scope.ID() != own:
		return fmt.Sprintf("%s in %s, but the result did not come down to %s", since, w.Scope, e.build.Scope), nil
	}
	return since + "; its result has been removed since, to make room or with the builder's disk", nil
}

// anew finds the first input that was not in the cache, and why that was so.
func (e *explainer) anew(i int) (in int, cause string) {
	for _, in := range e.build.Steps[i].Inputs {
		line := e.lines[in]
		if line == nil || line.Result != Ran && line.Result != Shared {
			continue
		}
		if line.Result == Shared {
			return in, line.Why
		}
		if before, cause := e.anew(in); before >= 0 && strings.HasPrefix(line.Why, "an earlier step") {
			return before, cause
		}
		return in, line.Why
	}
	return -1, ""
}

// changed says what differs between a step and what it was before, but for the steps before it.
func (e *explainer) changed(s, was Step) (string, []Change) {
	if !slices.Equal(s.Args, was.Args) || len(s.Args) == 0 && instruction(s) != instruction(was) {
		return fmt.Sprintf("the instruction has changed: %s → %s", shown(instruction(was)), shown(instruction(s))), nil
	}
	if why := e.environment(s.Env, was.Env); why != "" {
		return why, nil
	}
	for _, f := range []struct{ what, now, was string }{{"the working directory", s.Dir, was.Dir}, {"the user", s.User, was.User}, {"the platform", s.Platform, was.Platform}} {
		if f.now != f.was {
			return fmt.Sprintf("%s has changed: %s → %s", f.what, orNone(f.was), orNone(f.now)), nil
		}
	}
	if files := e.files(s, was); len(files) > 0 {
		return summary(files), files
	}
	for n, in := range s.Inputs {
		if now := e.build.Steps[in]; now.Source != "" && n < len(was.Inputs) {
			if before := e.before.Steps[was.Inputs[n]]; before.Source != "" && before.Source != now.Source {
				return moved(before.Source, now.Source), nil
			}
		}
	}
	return "", nil
}

// environment says which variables differ. Build arguments are among them.
func (e *explainer) environment(now, was []string) string {
	a, b := variables(was), variables(now)
	var differ []string
	for _, key := range slices.Sorted(maps.Keys(merge(a, b))) {
		if a[key] == b[key] {
			continue
		}
		what := "the environment's " + key
		if _, ok := e.build.Args[key]; ok {
			what = "the build argument " + key
		} else if _, ok := e.before.Args[key]; ok {
			what = "the build argument " + key
		}
		differ = append(differ, fmt.Sprintf("%s has changed: %s → %s", what, orNone(a[key]), orNone(b[key])))
	}
	return strings.Join(differ, "; ")
}

func variables(env []string) map[string]string {
	out := map[string]string{}
	for _, e := range env {
		key, value, _ := strings.Cut(e, "=")
		out[key] = value
	}
	return out
}

func merge(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// files are the local files of a step that differ from those that it took before.
func (e *explainer) files(s, was Step) (out []Change) {
	now, before := e.taken(e.build, s), e.taken(e.before, was)
	for _, path := range slices.Sorted(maps.Keys(merge(now, before))) {
		a, old := before[path]
		b, present := now[path]
		switch {
		case !old:
			out = append(out, Change{path, "added"})
		case !present:
			out = append(out, Change{path, "removed"})
		case a != b:
			out = append(out, Change{path, "changed"})
		}
	}
	return out
}

// taken are the files that a step took, by path.
func (e *explainer) taken(b *stored, s Step) map[string]string {
	out := map[string]string{}
	for _, t := range s.Takes {
		takes := e.ledger.cfg.Takes(t)
		for path, sum := range b.Manifests[t.From].Files {
			if takes(path) {
				out[path] = sum
			}
		}
	}
	return out
}

// summary names the files of a change.
func summary(files []Change) string {
	const most = 3
	var names []string
	for _, f := range files[:min(len(files), most)] {
		names = append(names, f.Path+" "+f.How)
	}
	text := strings.Join(names, ", ")
	if n := len(files) - most; n > 0 {
		text += fmt.Sprintf(", and %d more", n)
	}
	return text
}

// base says what is known of an image or another source.
func (e *explainer) base(s Step) string {
	if e.before == nil {
		return s.Source
	}
	was := e.before.counterpart(s)
	switch {
	case was == nil:
		return s.Source
	case was.Source != s.Source:
		return moved(was.Source, s.Source)
	}
	return "the same as in job " + e.before.Job
}

func moved(was, now string) string {
	a, oldDigest, _ := strings.Cut(was, "@")
	b, newDigest, _ := strings.Cut(now, "@")
	if a == b && oldDigest != "" {
		return fmt.Sprintf("%s has moved: %s → %s", bare(a), oldDigest, newDigest)
	}
	return fmt.Sprintf("the base is another: %s → %s", bare(was), bare(now))
}

func bare(source string) string { return strings.TrimPrefix(source, "docker-image://") }

var label = regexp.MustCompile(`^\[(?:([^\]]*?) )?(\d+)/\d+\] (.*)$`)

// place takes a step's name apart: "[linux/amd64 build 2/5] RUN make".
func place(s Step) (stage string, n int, text string) {
	m := label.FindStringSubmatch(s.Name)
	if m == nil {
		return "", 0, s.Name
	}
	n, _ = strconv.Atoi(m[2])
	return m[1], n, m[3]
}

func instruction(s Step) string {
	_, _, text := place(s)
	return text
}

// counterpart is the step that had the place of s: of the same stage that with the same text, or else the same
// number.
func (b *stored) counterpart(s Step) *Step {
	stage, n, text := place(s)
	var best *Step
	distance := -1
	for i := range b.Steps {
		c := &b.Steps[i]
		cStage, cN, cText := place(*c)
		if cStage != stage || (c.Source == "") != (s.Source == "") {
			continue
		}
		d := max(n-cN, cN-n)
		if cText != text && (len(s.Args) == 0 || !slices.Equal(c.Args, s.Args)) {
			if d != 0 {
				continue
			}
			d = len(b.Steps) // rather one with the same text, wherever it is
		}
		if distance < 0 || d < distance {
			best, distance = c, d
		}
	}
	return best
}

// shown is a text as an explanation quotes it: on one line, and not all of it.
func shown(text string) string {
	const most = 200
	text = strings.Join(strings.Fields(text), " ")
	if utf8.RuneCountInString(text) > most {
		text = string([]rune(text)[:most-1]) + "…"
	}
	return strconv.Quote(text)
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return shown(text)
}
