package job

import (
	"context"
	"io"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// Kept is what outlives a job: it restores and saves the job's caches, and brings artifacts from and to the forge. The
// files never lie on the machine: they are packed and extracted in the sandbox, and pass through as streams. It tells
// the trace what gitlab-runner's helper does, in its words. One job's; its methods are called one after the other.
type Kept struct {
	// On holds the job's files and its processes. Helper sees the files at the same place and has git, which lists what
	// is untracked; it is used for nothing else, and may be On.
	On, Helper sandbox.Host
	// Dir is the project's directory, absolute.
	Dir string
	// User is as whom files are made, as in sandbox.Process: the one that runs the scripts. They are packed as root.
	User string
	// JobID, JobName and Ref are the job's, as the forge has them. A cache without a key has the last two for one.
	JobID        int64
	JobName, Ref string

	Variables KeptVariables
	Archiver  Archiver
	Caches    CacheStore
	Forge     Forge
	// CacheTimeout bounds how long saving or restoring one cache may take; 0: no bound.
	CacheTimeout time.Duration
	// Say writes a line, without its end, to the trace.
	Say func(line string)
}

// KeptVariables are a job's variables.
type KeptVariables interface {
	Get(key string) string // empty if there is none
	Expand(text string) string
}

// ArtifactError is a failure of artifacts that fails the job as a script's does (script_failure). The trace has been
// told about it. Any other error of Upload and Download is the sandbox's.
type ArtifactError struct{ Err error }

func (e *ArtifactError) Error() string { return e.Err.Error() }

// Unwrap returns what has failed.
func (e *ArtifactError) Unwrap() error { return e.Err }

// Forge is where artifacts are kept.
type Forge interface {
	// UploadArtifact sends what body writes, as an artifact of the job. body may be called again, for another try; an
	// error of it ends the upload, for good, and is wrapped by UploadArtifact's.
	UploadArtifact(ctx context.Context, o ArtifactOptions, body func(io.Writer) error) error
	// DownloadArtifact writes a job's archive to w. It does not try again once it has written something.
	DownloadArtifact(ctx context.Context, d spec.Dependency, w io.Writer) error
	// Status is the HTTP status that an error of these two says, 0 if it says none.
	Status(err error) int
}

// ArtifactOptions say what an upload is.
type ArtifactOptions struct {
	Name         string // of the file, such as artifacts.zip
	Type, Format string // as in spec.Artifact; may be empty
	ExpireIn     string
}

// CacheStore keeps caches, for one job and in its scope.
type CacheStore interface {
	// Restore has extract called with what is kept under a key, and how many bytes that writes to w. It says where that
	// comes from, "" if there is nothing.
	Restore(ctx context.Context, key string, extract func(size int64, from func(w io.Writer) error) error) (from string, err error)
	// Save keeps what it reads, until io.EOF, under a key, and says how much that is.
	Save(ctx context.Context, key string, r io.Reader) (what string, err error)
}

// Archiver packs and extracts files inside of a sandbox.
type Archiver interface {
	// Pack selects files and begins to pack them. The caller closes the Packing.
	Pack(ctx context.Context, on sandbox.Host, s Selection) (Packing, error)
	// Extract extracts what from writes, an archive of a format and size (-1: unknown). What an archive of FormatTar
	// has made, and what it has replaced, is as it was if that fails.
	Extract(ctx context.Context, on sandbox.Host, t Target, size int64, from func(w io.Writer) error) (Extracted, error)
}

// Format is that of an archive, in GitLab's words where it has one.
type Format string

// The formats.
const (
	FormatTar  Format = "tar"  // caches
	FormatZip  Format = "zip"  // artifacts
	FormatGzip Format = "gzip" // reports: each file a member
	FormatRaw  Format = "raw"  // one file, as it is
)

// Selection says what is packed.
type Selection struct {
	Dir, User string // as in sandbox.Process
	// Paths and Exclude are patterns (doublestar), relative to Dir or below it.
	Paths, Exclude []string
	// Untracked are further names, each ended by a NUL; nil: none.
	Untracked io.Reader
	// Beneath takes what links lead to out of Dir for what is not there: User may read more than who has made them.
	Beneath bool
	Format  Format
	Level   int // of the compression of FormatZip, 0 (none) to 9
}

// Packing is files that are being packed. Read returns io.EOF only if all were; its error wraps *PackError if the job's
// files are the reason.
type Packing interface {
	io.ReadCloser
	// Found is what was selected. It is the sandbox's word, and for people only.
	Found() Found
}

// PackError is what went wrong inside of the sandbox: it is the job's.
type PackError struct{ Message string }

func (e *PackError) Error() string { return e.Message }

// Found is what a Selection has found.
type Found struct {
	Paths     []Match // of each pattern
	Excluded  []Match
	Untracked int64
	Entries   int64 // files, directories and links, all in all
	Git       bool  // some of it is in .git
}

// Match is what one pattern has found.
type Match struct {
	Entries int64
	Wrong   string // why the pattern is none; empty: it is one
}

// Target says where something is extracted to.
type Target struct {
	Dir, User string // as in sandbox.Process
	Format    Format // FormatTar or FormatZip
}

// Extracted is what was extracted. It is the sandbox's word, and for people only.
type Extracted struct {
	Files, Skipped int64 // the latter are devices and the like
	Git            bool  // some of it is in .git
}

// Restores reports whether a cache is one to restore, or to say something of; the stage is left out if none is.
func Restores(c spec.Cache) bool { return len(c.Paths) > 0 || c.Untracked }

// Saves reports whether a cache is one to save after a script, or to say something of.
func Saves(c spec.Cache, succeeded bool) bool { return Restores(c) && holds(c.When, succeeded) }

// Uploads reports whether an artifact is one to upload after a script.
func Uploads(a spec.Artifact, succeeded bool) bool {
	return (len(a.Paths) > 0 || len(a.Exclude) > 0 || a.Untracked) && holds(a.When, succeeded)
}

// Downloads reports whether a dependency has something to download.
func Downloads(d spec.Dependency) bool { return d.ArtifactsFile.Filename != "" }

// holds reports whether a condition (GitLab, cache:when and artifacts:when) holds after a script.
func holds(when string, succeeded bool) bool {
	switch when {
	case "", "on_success":
		return succeeded
	case "on_failure":
		return !succeeded
	}
	return when == "always"
}
