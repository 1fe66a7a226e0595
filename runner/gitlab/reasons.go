package gitlab

import (
	"slices"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// verdictOf is that of a result; its reason is as we have it, and supported makes it the server's. canceling is whether the server wanted the job to end,
// own says which errors bring a reason of their own.
func verdictOf(r runner.Result, canceling bool, own func(error) spec.FailureReason) Verdict {
	failed := Verdict{State: spec.Failed}
	reason := own(r.Err)
	switch {
	case r.Outcome == runner.Succeeded:
		return Verdict{State: spec.Success}
	case canceling:
		failed.Reason = spec.JobCanceled
	case r.Outcome == runner.TimedOut:
		failed.Reason = spec.JobExecutionTimeout
	case r.Outcome == runner.Cancelled && r.Reason == runner.ReasonShutdown:
		failed.Reason = spec.RunnerSystemFailure
	case r.Outcome == runner.Cancelled:
		failed.Reason = spec.RunnerInterrupted // by this machine's operator
	case reason != "":
		failed.Reason = reason
		if failed.Reason == spec.ScriptFailure {
			failed.ExitCode = r.ExitCode
		}
	case r.Outcome == runner.Failed:
		failed.Reason, failed.ExitCode = spec.ScriptFailure, r.ExitCode
	case r.Outcome == runner.Rejected && r.Reason == runner.ReasonImage:
		failed.Reason = spec.ImagePullFailure
	case r.Outcome == runner.Rejected:
		failed.Reason = spec.ConfigurationError
	default:
		failed.Reason = spec.RunnerSystemFailure
	}
	return failed
}

// supported is a reason as a server knows it, which says which it knows besides the three that all do (gitlab-runner,
// common/failure_reason_mapper.go).
func supported(reason spec.FailureReason, server []string) spec.FailureReason {
	known := func(r spec.FailureReason) bool {
		return r == spec.ScriptFailure || r == spec.RunnerSystemFailure || r == spec.JobExecutionTimeout || slices.Contains(server, string(r))
	}
	if reason == "" {
		return spec.ScriptFailure
	}
	if known(reason) {
		return reason
	}
	switch reason {
	case spec.ImagePullFailure, spec.ExternalDependencyFailure:
		return spec.RunnerSystemFailure
	case spec.ConfigurationError:
		return spec.ScriptFailure
	}
	return spec.UnknownFailure
}
