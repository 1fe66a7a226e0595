package job

import (
	"fmt"
	"io"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/script"
)

// executor is what the log says of how jobs run.
const executor = "runnerd"

// trace is a job's log, which looks as gitlab-runner's does. Everything goes to one stream, so that what the scripts
// write and what is said between them stay in order.
type trace struct {
	w        io.Writer
	sections bool // the forge folds sections
	stages   []Stage
}

// Stage is how long a stage of a job took, in seconds.
type Stage struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// write writes a piece of the log. That it is lost does not end the job: the runner tells of it at the end.
func (t *trace) write(text string) { _, _ = io.WriteString(t.w, text) }

func (t *trace) say(format string, args ...any)  { t.write(fmt.Sprintf(format, args...) + "\n") }
func (t *trace) warn(format string, args ...any) { t.write(script.Warning(format, args...)) }

// stage runs one stage of the job in a section of its own.
func (t *trace) stage(s script.Stage, run func() error) error {
	began := time.Now()
	t.write(s.Begin(executor, began, t.sections))
	err := run()
	t.write(s.End(time.Now(), t.sections))
	t.took(string(s), began)
	return err
}

// took notes how long something took.
func (t *trace) took(name string, since time.Time) {
	t.stages = append(t.stages, Stage{Name: name, Seconds: time.Since(since).Seconds()})
}
