package gitlabtest

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// StatusReport is what GET / says in JSON.
type StatusReport struct {
	URL        string           `json:"url"`
	Project    string           `json:"project"`
	Pipelines  []Pipeline       `json:"pipelines"`
	Jobs       []Job            `json:"jobs"`
	Runners    []Runner         `json:"runners"`
	Requests   map[Endpoint]int `json:"requests"`
	Violations []Violation      `json:"violations"`
}

// Report is the server's state.
func (s *Server) Report() StatusReport {
	return StatusReport{
		URL: s.URL, Project: s.o.Project.Path, Pipelines: s.Pipelines(), Jobs: s.Jobs(), Runners: s.Runners(),
		Requests: s.Requests(), Violations: s.Breaches(),
	}
}

// pages routes what is for people and scripts rather than runners.
func (s *Server) pages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.status)
	mux.HandleFunc("GET /jobs/{id}", s.jobPage)
	mux.HandleFunc("GET /jobs/{id}/trace", s.jobTrace)
	mux.HandleFunc("GET /jobs/{id}/artifacts/{type}", s.jobArtifact)
	mux.HandleFunc("POST /dev/pipelines", s.devRun)
	mux.HandleFunc("POST /dev/pipelines/{id}/cancel", s.dev(s.CancelPipeline))
	mux.HandleFunc("POST /dev/jobs/{id}/cancel", s.dev(s.Cancel))
	mux.HandleFunc("POST /dev/jobs/{id}/play", s.dev(s.Play))
	mux.HandleFunc("POST /dev/jobs/{id}/retry", s.dev(func(id int64) error {
		_, err := s.Retry(id)
		return err
	}))
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		// The addresses that jobs know, in CI_JOB_URL and CI_PIPELINE_URL.
		switch _, rest, _ := strings.Cut(r.URL.Path, "/-/"); {
		case strings.HasPrefix(rest, "jobs/"):
			http.Redirect(w, r, "/"+rest, http.StatusFound)
		case strings.HasPrefix(rest, "pipelines/"):
			http.Redirect(w, r, "/", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	})
	return http.NewCrossOriginProtection().Handler(mux)
}

// status is one page: for a browser, for a program, or for a terminal.
func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	report := s.Report()
	accept := r.Header.Get("Accept")
	switch {
	case strings.Contains(accept, "text/html"):
		render(w, "status", report)
	case strings.Contains(accept, "application/json"):
		writeJSON(w, http.StatusOK, report)
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_ = WriteReport(w, report)
	}
}

// WriteReport writes a report as text.
func WriteReport(w io.Writer, report StatusReport) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(t, "%s  %s\n", report.URL, report.Project)
	for _, p := range slices.Backward(report.Pipelines) {
		_, _ = fmt.Fprintf(t, "\npipeline %d\t%s\t%s\t%s\n", p.ID, p.Status, p.Ref, p.SHA[:min(8, len(p.SHA))])
		for _, j := range report.Of(p) {
			_, _ = fmt.Fprintf(t, "  %d\t%s\t%s\t%s\t%s\n", j.ID, j.Status, j.Stage, j.Name, j.Detail())
		}
	}
	for _, j := range report.Jobs {
		if j.PipelineID == 0 {
			_, _ = fmt.Fprintf(t, "job %d\t%s\t%s\t%s\t%s\n", j.ID, j.Status, j.Stage, j.Name, j.Detail())
		}
	}
	for _, v := range report.Violations {
		_, _ = fmt.Fprintf(t, "\nVIOLATION %s\n", v)
	}
	return t.Flush()
}

// Of are the jobs of a pipeline.
func (r StatusReport) Of(p Pipeline) []Job {
	var out []Job
	for _, j := range r.Jobs {
		if slices.Contains(p.Jobs, j.ID) {
			out = append(out, j)
		}
	}
	return out
}

// Detail says why a job failed, or how long it took.
func (j Job) Detail() string {
	switch {
	case j.Status == Failed && j.ExitCode != 0:
		return fmt.Sprintf("%s, exit code %d", j.FailureReason, j.ExitCode)
	case j.Status == Failed:
		return string(j.FailureReason)
	case j.Status == Pending && j.Assignments == 0 && len(j.Tags) > 0:
		return "waits for a runner with the tags " + strings.Join(j.Tags, ", ")
	case !j.Clock.Finished.IsZero() && !j.Clock.Accepted.IsZero():
		return j.Clock.Finished.Sub(j.Clock.Accepted).Round(time.Millisecond).String()
	}
	return ""
}

func (s *Server) jobPage(w http.ResponseWriter, r *http.Request) {
	id := pathID(r)
	j, err := s.Job(id)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	trace, _ := s.Trace(id)
	artifacts, _ := s.Artifacts(id)
	render(w, "job", struct {
		Job
		Trace     string
		Artifacts []Artifact
	}{j, plain(trace), artifacts})
}

// marks are the escape sequences and section markers of a trace.
var marks = regexp.MustCompile("section_(start|end):[0-9]+:[^\r\n]*\r|\x1b\\[[0-9;?]*[A-Za-z]|\r(\n)")

func plain(trace []byte) string { return marks.ReplaceAllString(string(trace), "$2") }

func (s *Server) jobTrace(w http.ResponseWriter, r *http.Request) {
	trace, err := s.Trace(pathID(r))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(trace)
}

func (s *Server) jobArtifact(w http.ResponseWriter, r *http.Request) {
	artifacts, _ := s.Artifacts(pathID(r))
	for _, a := range artifacts {
		if a.Type == r.PathValue("type") {
			w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", a.Name))
			sendFile(w, r, a.Path)
			return
		}
	}
	http.NotFound(w, r)
}

// devRun starts a pipeline of the project's directory.
func (s *Server) devRun(w http.ResponseWriter, r *http.Request) {
	var o struct {
		File      string            `json:"file"`
		Source    string            `json:"source"`
		Branch    string            `json:"branch"`
		Tag       string            `json:"tag"`
		Variables map[string]string `json:"variables"`
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyLimit))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil && !errors.Is(err, io.EOF) && !isForm(r) {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
		return
	}
	p, err := s.Run(r.Context(), RunOptions{File: o.File, Source: o.Source, Branch: o.Branch, Tag: o.Tag, Variables: o.Variables})
	switch {
	case err != nil:
		writeJSON(w, http.StatusUnprocessableEntity, map[string]string{"error": err.Error()})
	case isForm(r):
		http.Redirect(w, r, "/", http.StatusSeeOther)
	default:
		writeJSON(w, http.StatusCreated, p)
	}
}

// dev makes a handler of what is done to a job or pipeline.
func (s *Server) dev(do func(int64) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusNoContent
		switch err := do(pathID(r)); {
		case errors.Is(err, ErrUnknown):
			status = http.StatusNotFound
			writeJSON(w, status, map[string]string{"error": err.Error()})
		case err != nil:
			status = http.StatusConflict
			writeJSON(w, status, map[string]string{"error": err.Error()})
		case isForm(r):
			http.Redirect(w, r, "/", http.StatusSeeOther)
		default:
			w.WriteHeader(status)
		}
	}
}

// isForm says that a page's button was pressed.
func isForm(r *http.Request) bool {
	return r.Header.Get("Content-Type") == "application/x-www-form-urlencoded" && strings.Contains(r.Header.Get("Accept"), "text/html")
}

func pathID(r *http.Request) int64 {
	id, _ := strconv.ParseInt(r.PathValue("id"), 10, 64) // 0 is nobody's
	return id
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // a client that is gone hears nothing
}

//go:embed pages.html
var pagesHTML string

func render(w http.ResponseWriter, name string, data any) {
	t, err := template.New("").Parse(pagesHTML)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'")
	_ = t.ExecuteTemplate(w, name, data)
}
