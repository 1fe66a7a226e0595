package gitlab

import "github.com/runnerd/runnerd/runner/gitlab/spec"

// Features are what servers are told that this runner can do; each is a promise that a test keeps. What is missing:
// proxy and session (the interactive terminal), vault_secrets, native_steps_integration and job_inputs.
func Features() spec.Features {
	return spec.Features{
		Variables: true, RawVariables: true, Masking: true, Image: true, ImageExecutorOpts: true,
		Services: true, ServiceVariables: true, ServiceMultipleAliases: true, ServiceExecutorOpts: true,
		Refspecs: true, MultiBuildSteps: true, ReturnExitCode: true, Shared: true,
		Cache: true, FallbackCacheKeys: true,
		Artifacts: true, UploadMultipleArtifacts: true, UploadRawArtifacts: true, ArtifactsExclude: true,
		TraceReset: true, TraceChecksum: true, TraceSize: true,
		Cancelable: true, CancelGracefully: true, TwoPhaseJobCommit: true,
	}
}
