package gitlab

import "github.com/runnerd/runnerd/runner/gitlab/spec"

// Features are what servers are told that this runner can do; each is a promise that a test keeps. terminals is whether
// it serves those. What is missing: proxy (to ports of services), vault_secrets, native_steps_integration and job_inputs.
func Features(terminals bool) spec.Features {
	return spec.Features{
		Variables: true, RawVariables: true, Masking: true, Image: true, ImageExecutorOpts: true,
		Services: true, ServiceVariables: true, ServiceMultipleAliases: true, ServiceExecutorOpts: true,
		Refspecs: true, MultiBuildSteps: true, ReturnExitCode: true, Shared: true,
		Cache: true, FallbackCacheKeys: true,
		Artifacts: true, UploadMultipleArtifacts: true, UploadRawArtifacts: true, ArtifactsExclude: true,
		TraceReset: true, TraceChecksum: true, TraceSize: true,
		Session: terminals, Terminal: terminals,
		Cancelable: true, CancelGracefully: true, TwoPhaseJobCommit: true,
	}
}
