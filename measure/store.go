package measure

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxReport bounds a report that is read back, in bytes.
const maxReport = 64 << 20

// Store keeps reports, a directory for each machine and kernel.
type Store struct{ Dir string }

// timeFormat names a report: it sorts as time does.
const timeFormat = "20060102T150405Z"

func (s Store) dir(m Machine) string {
	clean := func(name string) string {
		return strings.Map(func(r rune) rune {
			if r == '.' || r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
				return r
			}
			return '_'
		}, name)
	}
	return filepath.Join(s.Dir, "host-"+clean(m.Host), "kernel-"+clean(m.Kernel))
}

// Keep writes a report as JSON, Markdown and SVG, and returns the three files.
func (s Store) Keep(r *Report) (files []string, err error) {
	dir := s.dir(r.Machine)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, r.Began.UTC().Format(timeFormat))
	for _, f := range []struct {
		ext   string
		write func(io.Writer) error
	}{
		{".md", r.WriteMarkdown},
		{".svg", r.WriteSVG},
		{".json", func(w io.Writer) error { // the last: what has it is complete
			e := json.NewEncoder(w)
			e.SetIndent("", " ")
			return e.Encode(r)
		}},
	} {
		if err := writeFile(name+f.ext, f.write); err != nil {
			return nil, fmt.Errorf("keep the report: %w", err)
		}
		files = append(files, name+f.ext)
	}
	return files, nil
}

func writeFile(name string, write func(io.Writer) error) (err error) {
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name+".new"))
	}
	return os.Rename(name+".new", name)
}

// Last is the newest report of a machine and kernel; nil if there is none.
func (s Store) Last(m Machine) (*Report, error) {
	names, err := filepath.Glob(filepath.Join(s.dir(m), "*.json"))
	if err != nil || len(names) == 0 {
		return nil, err
	}
	f, err := os.Open(slices.Max(names))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := new(Report)
	if err := json.NewDecoder(io.LimitReader(f, maxReport)).Decode(r); err != nil {
		return nil, fmt.Errorf("read the last report %s: %w: remove it", f.Name(), err)
	}
	return r, nil
}

// Change is one comparison beside that of an earlier report.
type Change struct {
	Series string  `json:"series"`
	Probe  string  `json:"probe"`
	Place  string  `json:"place"`
	Before float64 `json:"before_ratio"`
	Now    float64 `json:"now_ratio"`
	// Beyond tells that the two intervals have nothing in common.
	Beyond bool `json:"beyond_noise"`
}

// Compare lists what both reports measured, the greatest changes of a ratio first.
func (r *Report) Compare(last *Report) (changes []Change) {
	for _, now := range r.Series {
		before, ok := last.series(now.Name)
		if !ok {
			continue
		}
		for _, p := range now.Probes {
			for i, c := range p.Comparisons {
				old, ok := before.named(p.Name, c.Place)
				if !ok || c.Pairs == 0 || i == 0 {
					continue
				}
				apart := c.Interval.Low > old.Interval.High || c.Interval.High < old.Interval.Low
				changes = append(changes, Change{now.Name, p.Name, c.Place, old.Ratio, c.Ratio, apart})
			}
		}
	}
	slices.SortStableFunc(changes, func(a, b Change) int {
		if a.Beyond != b.Beyond {
			if a.Beyond {
				return -1
			}
			return 1
		}
		return int(math.Copysign(1, math.Abs(math.Log(b.Now/b.Before))-math.Abs(math.Log(a.Now/a.Before))))
	})
	return changes
}

func (o Outcome) named(probe, place string) (Comparison, bool) {
	for _, r := range o.Probes {
		for _, c := range r.Comparisons {
			if r.Name == probe && c.Place == place && c.Pairs > 0 {
				return c, true
			}
		}
	}
	return Comparison{}, false
}

// ChangeTable shows changes, at most so many.
func ChangeTable(last *Report, changes []Change, most int) Table {
	t := Table{Heading: "Since the last run", About: fmt.Sprintf("Ratios now and on %s; beyond noise is what the two intervals have nothing in common of.", last.Began.Format("2006-01-02 15:04")), Rows: [][]string{{"series", "probe", "place", "before", "now", ""}}}
	for _, c := range changes[:min(most, len(changes))] {
		verdict := "within noise"
		if c.Beyond {
			verdict = "beyond noise"
		}
		t.Rows = append(t.Rows, []string{c.Series, c.Probe, c.Place, fmt.Sprintf("%.3f", c.Before), fmt.Sprintf("%.3f", c.Now), verdict})
	}
	return t
}
