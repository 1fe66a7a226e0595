package gitlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/atomicwriter"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// record is what the journal has of a job: what a later process needs to bring it to its end at the server. It is
// written before anything is done with the job, and removed when the server wants nothing more of it.
type record struct {
	ID           string    `json:"id"` // the job's on this machine
	Registration string    `json:"registration"`
	URL          string    `json:"url"`
	CAFile       string    `json:"ca_file,omitempty"`
	Job          int64     `json:"job"`
	Token        string    `json:"token"`
	Name         string    `json:"name"`
	Project      string    `json:"project"`
	Pipeline     int64     `json:"pipeline"`
	Reasons      []string  `json:"failure_reasons,omitempty"` // that the server knows
	Debug        bool      `json:"debug,omitempty"`
	Stamps       bool      `json:"stamps,omitempty"`
	Assigned     time.Time `json:"assigned"`

	// Accepted is set when the server was told that the job runs. The process may have ended in between.
	Accepted bool `json:"accepted,omitempty"`
	// Verdict is how the job ended, from when that is decided, at Decided.
	Verdict *Verdict  `json:"verdict,omitempty"`
	Decided time.Time `json:"decided,omitzero"`
}

// Verdict is how a job ended, in GitLab's terms.
type Verdict struct {
	State    spec.State         `json:"state"`
	Reason   spec.FailureReason `json:"reason,omitempty"` // as the server knows it
	ExitCode int                `json:"exit_code,omitempty"`
}

// newRecord is that of a job that was just assigned.
func newRecord(id string, r Registration, j *spec.Job) record {
	return record{
		ID: id, Registration: r.Name, URL: r.URL, CAFile: r.CAFile, Job: j.ID, Token: j.Token, Name: j.JobInfo.Name,
		Project: j.JobInfo.ProjectFullPath, Pipeline: j.JobInfo.PipelineID, Reasons: j.Features.FailureReasons,
		Debug: truth(j, "CI_DEBUG_TRACE", false) || truth(j, "CI_DEBUG_SERVICES", false), Stamps: stamps(j), Assigned: time.Now(),
	}
}

// variable is the value of a variable of a job: the last of its name.
func variable(j *spec.Job, key string) (value string) {
	for _, v := range j.Variables {
		if v.Key == key {
			value = v.Value
		}
	}
	return value
}

// truth is the value of one that is true or false.
func truth(j *spec.Job, key string, otherwise bool) bool {
	if b, err := strconv.ParseBool(variable(j, key)); err == nil {
		return b
	}
	return otherwise
}

// number is the value of one that is a number, else 0.
func number(j *spec.Job, key string) int {
	n, _ := strconv.Atoi(variable(j, key))
	return n
}

// journal is a directory with a record and a spool of each job: ID.json and ID.trace.
type journal struct{ dir string }

// maxRecord bounds a record's file, in bytes.
const maxRecord = 1 << 20

func openJournal(dir string) (journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return journal{}, fmt.Errorf("open the journal of GitLab's jobs: %w", err)
	}
	return journal{dir}, nil
}

func (j journal) file(id string) string  { return filepath.Join(j.dir, id+".json") }
func (j journal) trace(id string) string { return filepath.Join(j.dir, id+".trace") }

// add writes the record of a new job. It outlives a crash of the machine.
func (j journal) add(r record) error {
	text, err := json.Marshal(r)
	if err == nil {
		err = errors.Join(atomicwriter.WriteFile(j.file(r.ID), text, 0o600), syncDir(j.dir))
	}
	if err != nil {
		return fmt.Errorf("write down job %s: %w", r.ID, err)
	}
	return nil
}

// update replaces a job's record. That outlives a crash of the process. After one of the machine the record may be as it
// was before, and the job then ends as one that was interrupted.
func (j journal) update(r record) error {
	text, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(j.file(r.ID)+newSuffix, text, 0o600)
	}
	if err == nil {
		err = os.Rename(j.file(r.ID)+newSuffix, j.file(r.ID))
	}
	if err != nil {
		return fmt.Errorf("write down job %s: %w", r.ID, err)
	}
	return nil
}

const newSuffix = ".new"

// remove forgets a job.
func (j journal) remove(id string) error {
	var errs []error
	for _, name := range []string{j.file(id), j.trace(id)} { // in this order: a record without its spool would be of a job with an empty log
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("forget job %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// all returns the records, and removes files that belong to none. An error names each record that cannot be read.
func (j journal) all() (records []record, err error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, fmt.Errorf("read the journal of GitLab's jobs: %w", err)
	}
	var errs []error
	known := map[string]bool{}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || strings.HasPrefix(id, ".") {
			continue
		}
		known[id] = true
		r, err := readRecord(j.file(id))
		if err == nil && r.ID != id {
			err = fmt.Errorf("it is that of job %s", cut(r.ID))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w: GitLab is not told how that job ended; remove the file", j.file(id), err))
			continue
		}
		records = append(records, r)
	}
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && known[id] {
			continue
		}
		if id, ok := strings.CutSuffix(e.Name(), ".trace"); ok && known[id] {
			continue
		}
		errs = append(errs, os.Remove(filepath.Join(j.dir, e.Name())))
	}
	return records, errors.Join(errs...)
}

func readRecord(file string) (r record, err error) {
	f, err := os.Open(file)
	if err != nil {
		return r, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(text, &r)
}
