package script

import (
	"fmt"
	"strings"
	"time"
)

// The colours of gitlab-runner's log.
const (
	green  = "\x1b[32;1m"
	red    = "\x1b[31;1m"
	cyan   = "\x1b[36;1m"
	yellow = "\x1b[0;33m"
	reset  = "\x1b[0;m"

	clearLine = "\x1b[0K"
)

// Stage is a part of a job. Its name is that of its section in the log.
type Stage string

// The stages, in their order.
const (
	StageResolveSecrets    Stage = "resolve_secrets"
	StagePrepareExecutor   Stage = "prepare_executor"
	StagePrepare           Stage = "prepare_script"
	StageGetSources        Stage = "get_sources"
	StageRestoreCache      Stage = "restore_cache"
	StageDownloadArtifacts Stage = "download_artifacts"
	StageAfterScript       Stage = "after_script"
	StageArchiveCache      Stage = "archive_cache"
	StageArchiveCacheFail  Stage = "archive_cache_on_failure"
	StageUpload            Stage = "upload_artifacts_on_success"
	StageUploadFail        Stage = "upload_artifacts_on_failure"
	StageCleanup           Stage = "cleanup_file_variables"
)

// StageOf is the stage of a step, whose script comes after StageDownloadArtifacts: step_script.
func StageOf(step string) Stage { return Stage("step_" + strings.ToLower(step)) }

// Heading is the first line of a stage's section. The executor is for StagePrepareExecutor only.
func (s Stage) Heading(executor string) string {
	switch s {
	case StageResolveSecrets:
		return "Resolving secrets"
	case StagePrepareExecutor:
		return fmt.Sprintf("Preparing the %q executor", executor)
	case StagePrepare:
		return "Preparing environment"
	case StageGetSources:
		return "Getting source from Git repository"
	case StageRestoreCache:
		return "Restoring cache"
	case StageDownloadArtifacts:
		return "Downloading artifacts"
	case StageAfterScript:
		return "Running after_script"
	case StageArchiveCache:
		return "Saving cache for successful job"
	case StageArchiveCacheFail:
		return "Saving cache for failed job"
	case StageUpload:
		return "Uploading artifacts for successful job"
	case StageUploadFail:
		return "Uploading artifacts for failed job"
	case StageCleanup:
		return "Cleaning up project directory and file based variables"
	}
	return fmt.Sprintf("Executing %q stage of the job script", string(s))
}

// Begin opens a stage's section with its heading. Without sections (spec.JobFeatures.TraceSections) it is the heading
// alone.
func (s Stage) Begin(executor string, at time.Time, sections bool) string {
	heading := cyan + s.Heading(executor) + reset + "\n"
	if !sections {
		return heading
	}
	return SectionStart(string(s), at) + heading
}

// End closes a stage's section.
func (s Stage) End(at time.Time, sections bool) string {
	if !sections {
		return ""
	}
	return SectionEnd(string(s), at)
}

// SectionStart opens a section of the log; its header is what follows on the line. Options are such as
// "collapsed=true" (GitLab, doc/ci/jobs/job_logs.md).
func SectionStart(name string, at time.Time, options ...string) string {
	return fmt.Sprintf("section_start:%d:%s%s\r%s", at.Unix(), name, sectionOptions(options), clearLine)
}

// SectionEnd closes the section.
func SectionEnd(name string, at time.Time) string {
	return fmt.Sprintf("section_end:%d:%s\r%s", at.Unix(), name, clearLine)
}

func sectionOptions(options []string) string {
	if len(options) == 0 {
		return ""
	}
	return "[" + strings.Join(options, ",") + "]"
}

// Notice is a line of the log in green, as gitlab-runner says what it does.
func Notice(format string, args ...any) string {
	return green + fmt.Sprintf(format, args...) + reset + "\n"
}

// Warning is for what the job can live with.
func Warning(format string, args ...any) string {
	return yellow + "WARNING: " + fmt.Sprintf(format, args...) + reset + "\n"
}

// Failure is for what ends the job: Failure("Job failed: exit code 1").
func Failure(format string, args ...any) string {
	return red + "ERROR: " + fmt.Sprintf(format, args...) + reset + "\n"
}

// Succeeded is the last line of a job that did.
func Succeeded() string { return Notice("Job succeeded") }

// Banner are the first lines of a log.
func Banner(program, version, revision, runner, shortToken, systemID string) string {
	return fmt.Sprintf("Running with %s %s (%s)\n  on %s %s, system ID: %s\n", program, version, revision, runner, shortToken, systemID)
}
