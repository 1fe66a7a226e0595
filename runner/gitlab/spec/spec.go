// Package spec has the messages of GitLab's runner API, as they are on the wire.
//
// Sources: gitlab-runner, common/network.go and common/spec/spec.go (v19.4); GitLab, lib/api/ci/runner.rb and
// lib/api/entities/ci/job_request/*.rb. Fields that GitLab sends and nothing here uses are left out: reading ignores
// them.
package spec

import "encoding/json"

// Info says what a runner is and can do. It goes with each request for a job, and with registering and verifying.
type Info struct {
	Name         string   `json:"name,omitempty"`
	Version      string   `json:"version,omitempty"`
	Revision     string   `json:"revision,omitempty"`
	Platform     string   `json:"platform,omitempty"`
	Architecture string   `json:"architecture,omitempty"`
	Executor     string   `json:"executor,omitempty"`
	Shell        string   `json:"shell,omitempty"`
	Features     Features `json:"features"`
	Config       struct {
		GPUs string `json:"gpus"`
	} `json:"config,omitzero"`
	Labels map[string]string `json:"labels,omitempty"`
}

// Features are what a runner can do (gitlab-runner, common/network.go, FeaturesInfo). One that is true is a promise.
type Features struct {
	Variables               bool `json:"variables"`
	Image                   bool `json:"image"`
	Services                bool `json:"services"`
	Artifacts               bool `json:"artifacts"`
	Cache                   bool `json:"cache"`
	FallbackCacheKeys       bool `json:"fallback_cache_keys"`
	Shared                  bool `json:"shared"`
	UploadMultipleArtifacts bool `json:"upload_multiple_artifacts"`
	UploadRawArtifacts      bool `json:"upload_raw_artifacts"`
	Session                 bool `json:"session"`
	Terminal                bool `json:"terminal"`
	Refspecs                bool `json:"refspecs"`
	Masking                 bool `json:"masking"`
	Proxy                   bool `json:"proxy"`
	RawVariables            bool `json:"raw_variables"`
	ArtifactsExclude        bool `json:"artifacts_exclude"`
	MultiBuildSteps         bool `json:"multi_build_steps"`
	TraceReset              bool `json:"trace_reset"`
	TraceChecksum           bool `json:"trace_checksum"`
	TraceSize               bool `json:"trace_size"`
	VaultSecrets            bool `json:"vault_secrets"`
	Cancelable              bool `json:"cancelable"`
	ReturnExitCode          bool `json:"return_exit_code"`
	ServiceVariables        bool `json:"service_variables"`
	ServiceMultipleAliases  bool `json:"service_multiple_aliases"`
	ImageExecutorOpts       bool `json:"image_executor_opts"`
	ServiceExecutorOpts     bool `json:"service_executor_opts"`
	CancelGracefully        bool `json:"cancel_gracefully"`
	NativeSteps             bool `json:"native_steps_integration"`
	TwoPhaseJobCommit       bool `json:"two_phase_job_commit"`
	JobInputs               bool `json:"job_inputs"`
}

// RegisterRequest is the body of POST runners, for legacy registration tokens only.
type RegisterRequest struct {
	Info           Info   `json:"info"`
	Token          string `json:"token"`
	Description    string `json:"description,omitempty"`
	TagList        string `json:"tag_list,omitempty"` // comma-separated
	RunUntagged    bool   `json:"run_untagged"`
	Locked         bool   `json:"locked"`
	AccessLevel    string `json:"access_level,omitempty"` // not_protected, ref_protected
	MaximumTimeout int    `json:"maximum_timeout,omitempty"`
	Paused         bool   `json:"paused"`
}

// VerifyRequest is the body of POST runners/verify, DELETE runners and DELETE runners/managers, and of
// POST runners/reset_authentication_token.
type VerifyRequest struct {
	Token    string `json:"token"`
	SystemID string `json:"system_id,omitempty"`
	Info     *Info  `json:"info,omitempty"`
}

// Registered answers registering, verifying and resetting a token.
type Registered struct {
	ID             int64  `json:"id"`
	Token          string `json:"token"`
	TokenExpiresAt string `json:"token_expires_at"` // RFC 3339; empty: never
}

// JobRequest is the body of POST jobs/request.
type JobRequest struct {
	Info       Info     `json:"info"`
	Token      string   `json:"token"`
	SystemID   string   `json:"system_id,omitempty"`
	LastUpdate string   `json:"last_update,omitempty"`
	Session    *Session `json:"session,omitempty"`
}

// Session says where a job's terminal can be reached.
type Session struct {
	URL           string `json:"url,omitempty"`
	Certificate   string `json:"certificate,omitempty"`   // PEM
	Authorization string `json:"authorization,omitempty"` // of the Authorization header
}

// Job is the answer to a JobRequest, 201.
type Job struct {
	ID            int64          `json:"id"`
	Token         string         `json:"token"`
	AllowGitFetch bool           `json:"allow_git_fetch"`
	JobInfo       JobInfo        `json:"job_info"`
	GitInfo       GitInfo        `json:"git_info"`
	RunnerInfo    RunnerInfo     `json:"runner_info"`
	Inputs        []Input        `json:"inputs,omitempty"`
	Variables     []Variable     `json:"variables"`
	Steps         []Step         `json:"steps"`
	Image         *Image         `json:"image"`
	Services      []Image        `json:"services"`
	Artifacts     []Artifact     `json:"artifacts"`
	Cache         []Cache        `json:"cache"`
	Credentials   []Credential   `json:"credentials"`
	Dependencies  []Dependency   `json:"dependencies"`
	Features      JobFeatures    `json:"features"`
	Secrets       map[string]any `json:"secrets,omitempty"`
	Hooks         []Hook         `json:"hooks,omitempty"`
	Run           string         `json:"run,omitempty"` // a JSON array of steps (CI/CD steps), in a JSON string
	PolicyOptions *struct {
		PolicyJob             bool     `json:"execution_policy_job"`
		Name                  string   `json:"policy_name"`
		VariablesOverride     *bool    `json:"policy_variables_override_allowed,omitempty"`
		VariablesOverrideExcl []string `json:"policy_variables_override_exceptions,omitempty"`
	} `json:"policy_options,omitempty"`
}

// Input is an input of a job.
type Input struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value"`
}

// JobInfo says which job it is.
type JobInfo struct {
	Name               string  `json:"name"`
	Stage              string  `json:"stage"`
	PipelineID         int64   `json:"pipeline_id"`
	ProjectID          int64   `json:"project_id"`
	ProjectName        string  `json:"project_name"`
	ProjectFullPath    string  `json:"project_full_path"`
	NamespaceID        int64   `json:"namespace_id"`
	RootNamespaceID    int64   `json:"root_namespace_id"`
	UserID             int64   `json:"user_id"`
	TimeInQueueSeconds float64 `json:"time_in_queue_seconds"`
	QueueSize          int64   `json:"queue_size"`
	QueueDepth         int64   `json:"queue_depth"`
}

// GitInfo says what to check out.
type GitInfo struct {
	RepoURL          string   `json:"repo_url"` // with gitlab-ci-token and the job's token
	RepoObjectFormat string   `json:"repo_object_format,omitempty"`
	Ref              string   `json:"ref"`
	SHA              string   `json:"sha"`
	BeforeSHA        string   `json:"before_sha"`
	RefType          string   `json:"ref_type"` // branch or tag
	Refspecs         []string `json:"refspecs"`
	Depth            int      `json:"depth"`
	// Protected is nil where GitLab is older than 17.3; it is then not known, and taken for false.
	Protected *bool `json:"protected,omitempty"`
}

// RunnerInfo says how long the job may take, in seconds.
type RunnerInfo struct {
	Timeout     int    `json:"timeout"`
	RunnerUUID  string `json:"uuid,omitempty"`
	RunnerToken string `json:"runner_token,omitempty"`
}

// Variable is a variable of a job.
type Variable struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Public bool   `json:"public"`
	File   bool   `json:"file"`   // the value goes to a file, the variable is its path
	Masked bool   `json:"masked"` // hidden in the trace
	Raw    bool   `json:"raw"`    // references in it are not expanded
}

// Step is one script of a job: the name is script, after_script, or release.
type Step struct {
	Name         string   `json:"name"`
	Script       []string `json:"script"`
	Timeout      int      `json:"timeout"`
	When         string   `json:"when"` // on_success, on_failure, always
	AllowFailure bool     `json:"allow_failure"`
}

// The names of steps.
const (
	StepScript      = "script"
	StepAfterScript = "after_script"
)

// Image is a job's image or a service.
type Image struct {
	Name         string          `json:"name"`
	Alias        string          `json:"alias,omitempty"` // of a service; several with spaces or commas between
	Command      []string        `json:"command,omitempty"`
	Entrypoint   []string        `json:"entrypoint,omitempty"`
	Ports        []Port          `json:"ports,omitempty"`
	Variables    []Variable      `json:"variables,omitempty"`
	PullPolicies []string        `json:"pull_policy,omitempty"`
	ExecutorOpts json.RawMessage `json:"executor_opts,omitempty"` // {docker: {platform, user}, kubernetes: {user}}
}

// Port is a port of an image, for the web terminal's proxy.
type Port struct {
	Number   int    `json:"number"`
	Protocol string `json:"protocol"`
	Name     string `json:"name"`
}

// Artifact is what a job leaves.
type Artifact struct {
	Name      string   `json:"name"`
	Untracked bool     `json:"untracked"`
	Paths     []string `json:"paths"`
	Exclude   []string `json:"exclude,omitempty"`
	When      string   `json:"when"` // empty: on_success
	Type      string   `json:"artifact_type"`
	Format    string   `json:"artifact_format"` // zip, gzip, raw; empty: zip
	ExpireIn  string   `json:"expire_in"`
}

// Cache is what a job shares with later ones.
type Cache struct {
	Key          string   `json:"key"`
	Untracked    bool     `json:"untracked"`
	Policy       string   `json:"policy"` // pull-push, pull, push
	Paths        []string `json:"paths"`
	When         string   `json:"when"`
	FallbackKeys []string `json:"fallback_keys,omitempty"`
}

// Credential is for a registry.
type Credential struct {
	Type     string `json:"type"` // registry
	URL      string `json:"url"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// Dependency is a job whose artifacts this one gets.
type Dependency struct {
	ID            int64  `json:"id"`
	Token         string `json:"token"`
	Name          string `json:"name"`
	ArtifactsFile struct {
		Filename string `json:"filename"` // empty: it has none
		Size     int64  `json:"size"`
	} `json:"artifacts_file"`
}

// JobFeatures are what the server wants of the runner.
type JobFeatures struct {
	TraceSections     bool     `json:"trace_sections"`
	TokenMaskPrefixes []string `json:"token_mask_prefixes,omitempty"`
	FailureReasons    []string `json:"failure_reasons,omitempty"`
}

// Hook is a script that runs around a part of a job.
type Hook struct {
	Name   string   `json:"name"` // pre_get_sources_script
	Script []string `json:"script"`
}

// State is a job's state for the server.
type State string

// The states.
const (
	Pending State = "pending" // phase one of two: assigned, not accepted
	Running State = "running"
	Success State = "success"
	Failed  State = "failed"
	// The rest the server tells, in the header Job-Status.
	Canceling State = "canceling" // stop the script, run after_script
	Canceled  State = "canceled"  // stop at once
)

// FailureReason is why a job failed.
type FailureReason string

// The reasons (gitlab-runner, common/spec/spec.go). The server understands the first three, and those that it names in
// JobFeatures.FailureReasons.
const (
	ScriptFailure             FailureReason = "script_failure"
	RunnerSystemFailure       FailureReason = "runner_system_failure"
	JobExecutionTimeout       FailureReason = "job_execution_timeout"
	ImagePullFailure          FailureReason = "image_pull_failure"
	UnknownFailure            FailureReason = "unknown_failure"
	ConfigurationError        FailureReason = "runner_configuration_error"
	ExternalDependencyFailure FailureReason = "runner_external_dependency_failure"
	RunnerInterrupted         FailureReason = "runner_interrupted"
	JobCanceled               FailureReason = "job_canceled"
)

// Update is the body of PUT jobs/:id.
type Update struct {
	Token         string        `json:"token"`
	State         State         `json:"state"`
	FailureReason FailureReason `json:"failure_reason,omitempty"`
	Checksum      string        `json:"checksum,omitempty"` // the same as Output.Checksum
	Output        Output        `json:"output,omitzero"`
	ExitCode      int           `json:"exit_code,omitempty"`
	Info          Info          `json:"info"`
}

// Output is what the trace as a whole is.
type Output struct {
	Checksum string `json:"checksum,omitempty"` // crc32:%08x, IEEE, of the masked bytes
	Bytesize int    `json:"bytesize,omitempty"`
}
