package configtoml

import "strings"

// rule says what becomes of a key.
type rule struct {
	verdict Verdict
	note    string
	take    func(b *builder, k key) (Verdict, string) // nil: verdict and note, whatever the value
}

// section is a table that is judged as a whole.
type section struct {
	path    string
	verdict Verdict
	note    string
}

// sections are those tables. What is in them is not looked at.
func sections() []section {
	const elsewhere = "it is for an executor that runs jobs elsewhere"
	return []section{
		{"runners.kubernetes", Refused, elsewhere + ": runnerd runs them on this machine; let gitlab-runner go on in the cluster"},
		{"runners.machine", Refused, elsewhere + ": runnerd starts no machines; install it on each"},
		{"runners.autoscaler", Refused, elsewhere + ": runnerd starts no machines; install it on each"},
		{"runners.instance", Refused, elsewhere},
		{"runners.ssh", Refused, elsewhere},
		{"runners.parallels", Refused, elsewhere},
		{"runners.virtualbox", Refused, elsewhere},
		{"runners.custom", Refused, "its programs run on the machine itself, outside of any sandbox"},
		{"runners.docker.services", ByHand, "services for every job: write them into the pipeline (default: services:)"},
		{"runners.docker.services_devices", Refused, "devices of the machine are not given to jobs"},
		{"runners.cache.gcs", ByHand, "caches are kept on this machine or in S3 (cache.url); Google's storage can be used by its S3 API"},
		{"runners.cache.azure", ByHand, "caches are kept on this machine or in S3 (cache.url)"},
		{"runners.referees", Ignored, "GitLab has removed referees; see metrics.address"},
		{"runners.monitoring", Ignored, "runnerd has metrics of its own: see metrics.address"},
		{"runners.artifact", Ignored, "uploads end when nothing moves any more"},
		{"runners.experimental", Ignored, "'runnerd doctor' and 'runnerd verify' tell whether jobs can run"},
		{"runners.labels", Ignored, "labels of gitlab-runner's own metrics and logs"},
		{"labels", Ignored, "labels of gitlab-runner's own metrics and logs"},
		{"machine", Ignored, "runnerd starts no machines"},
		{"experimental", Ignored, "it is for gitlab-runner's usage log; see 'runnerd events' and metrics.address"},
	}
}

// inMap is the rule of a key in a table whose keys the user makes up.
func inMap(path string) (rule, bool) {
	for table, r := range map[string]rule{
		"runners.feature_flags":            {take: takeFeatureFlag},
		"runners.docker.sysctls":           {verdict: Refused, note: "parameters of the kernel are the sandbox's own"},
		"runners.docker.tmpfs":             {verdict: Ignored, note: "what a job writes lies on its sandbox's disk, and is never synced"},
		"runners.docker.services_tmpfs":    {verdict: Ignored, note: "what a service writes lies on its sandbox's disk, and is never synced"},
		"runners.docker.container_labels":  {verdict: Ignored, note: "there is no Docker Engine that would show them"},
		"runners.docker.ulimit":            {verdict: Ignored, note: "a sandbox has limits as a whole: see --pids, --memory"},
		"runners.docker.log_options":       {verdict: Ignored, note: "there is no Docker Engine that would keep logs"},
		"runners.docker.volume_driver_ops": {verdict: Ignored, note: "there are no volumes between jobs"},
	} {
		if strings.HasPrefix(path, table+".") {
			return r, true
		}
	}
	return rule{}, false
}

// rules are those of all documented keys, by their paths.
func rules() map[string]rule {
	const (
		fresh    = "each job has a fresh sandbox"
		engine   = "there is no Docker Engine of the machine's: each sandbox has what it needs itself"
		sharing  = "services share the limits of their job's sandbox"
		weighs   = "sandboxes are weighed by their processors (--cpu)"
		network  = "sandboxes have networks of their own"
		retries  = "how often and when GitLab is asked again, is as GitLab says"
		timeouts = "the timeout is that of the job; see also timeout.max"
		windows  = "it is for Windows"
		cgroups  = "a sandbox has a cgroup of its own"
	)
	all := map[string]rule{
		"concurrent":                       {take: takeConcurrent},
		"check_interval":                   {verdict: Ignored, note: "GitLab holds the request until there is a job"},
		"log_level":                        {take: byHandText("log.level")},
		"log_format":                       {take: byHandText("log.format (text or json)")},
		"sentry_dsn":                       {verdict: Ignored, note: "nothing is sent to Sentry; errors are in the log"},
		"connection_max_age":               {verdict: Ignored, note: "connections are kept while they are used"},
		"listen_address":                   {take: byHandText("metrics.address")},
		"session_server.listen_address":    {take: byHandText("terminal.listen")},
		"session_server.advertise_address": {take: byHandText("terminal.advertise")},
		"session_server.session_timeout":   {take: byHandText("terminal.timeout (in seconds: s)")},

		"shutdown_timeout": {take: byHandText("drain (in seconds: s)")},
		"user":             {verdict: Ignored, note: "jobs run as the user that their image names, in a user namespace of their sandbox"},
		"runners":          {verdict: Refused, note: "runners in one line are not read: write each as [[runners]]"},
	}
	for name, r := range map[string]rule{
		"name":              {take: takeName},
		"url":               {take: takeURL},
		"id":                {verdict: Taken, note: "GitLab says it when the runner is verified"},
		"token":             {take: takeToken},
		"token_obtained_at": {take: takeTokenObtained},
		"token_expires_at":  {verdict: Taken, note: "GitLab says it when the runner is verified"},
		"tls-ca-file":       {take: takeCAFile},
		"tls-cert-file":     {take: refuseRunner("the forge would have to be spoken to with a client's certificate, which runnerd does not do")},
		"tls-key-file":      {verdict: Refused, note: "see tls-cert-file"},
		"limit":             {take: takeLimit},
		"executor":          {take: takeExecutor},
		"shell":             {take: takeShell},
		"builds_dir":        {take: takeBuilds},
		"cache_dir":         {verdict: Ignored, note: "caches are kept by runnerd, by project: see cache in its configuration"},
		"environment":       {take: takeEnvironment},
		"clone_url":         {take: takeCloneURL},

		"output_limit":                        {take: takeOutputLimit},
		"request_concurrency":                 {verdict: Ignored, note: "runnerd asks for as many jobs as it has room for"},
		"strict_check_interval":               {verdict: Ignored, note: retries},
		"unhealthy_requests_limit":            {verdict: Ignored, note: retries},
		"unhealthy_interval":                  {verdict: Ignored, note: retries},
		"job_status_final_update_retry_limit": {verdict: Ignored, note: retries},
		"prepare_timeout":                     {verdict: Ignored, note: timeouts},
		"get_sources_timeout":                 {verdict: Ignored, note: timeouts},
		"pre_clone_script":                    {take: takeScript},
		"post_clone_script":                   {take: takeScript},
		"pre_get_sources_script":              {take: takeScript},
		"post_get_sources_script":             {take: takeScript},
		"pre_build_script":                    {take: takeScript},
		"post_build_script":                   {take: takeScript},
		"debug_trace_disabled":                {take: takeDebugTrace},
		"safe_directory_checkout":             {verdict: Ignored, note: fresh},
		"clean_git_config":                    {verdict: Ignored, note: fresh},
		"proxy_exec":                          {verdict: Ignored, note: "it is for steps, which jobs of runnerd do not have"},
		"step_runner_image":                   {verdict: Ignored, note: "it is for steps, which jobs of runnerd do not have"},
		"use_slot_cgroups":                    {verdict: Ignored, note: cgroups},
		"slot_cgroup_template":                {verdict: Ignored, note: cgroups},
		"custom_build_dir.enabled":            {verdict: Ignored, note: "GIT_CLONE_PATH may be used in any sandbox: nothing else is there"},

		"cache.Type":                   {take: takeCacheType},
		"cache.Path":                   {verdict: Ignored, note: "caches are kept by project, in places of runnerd's"},
		"cache.Shared":                 {verdict: Ignored, note: "caches are those of a project, whichever runner has its jobs"},
		"cache.MaxUploadedArchiveSize": {take: byHandText("cache.max_entry (in bytes)")},

		"docker.host":          {verdict: Ignored, note: engine},
		"docker.tls_cert_path": {verdict: Ignored, note: engine},
		"docker.tls_verify":    {verdict: Ignored, note: engine},

		"docker.image":                        {take: takeImage},
		"docker.pull_policy":                  {take: takePullPolicy},
		"docker.memory":                       {take: takeMemory},
		"docker.cpus":                         {take: takeCPUs},
		"docker.privileged":                   {take: refusePrivileged},
		"docker.services_privileged":          {take: refusePrivileged},
		"docker.volumes":                      {take: takeVolumes},
		"docker.network_mode":                 {take: takeNetworkMode},
		"docker.pid_mode":                     {take: refuseHost("jobs do not see the machine's processes")},
		"docker.ipcmode":                      {take: refuseHost("jobs do not share memory with the machine")},
		"docker.userns_mode":                  {take: refuseHost("each sandbox is a user namespace")},
		"docker.cap_add":                      {take: refuseSome("capabilities reach no further than the sandbox, whose root has those of its user namespace")},
		"docker.devices":                      {take: refuseSome("devices of the machine are not given to jobs")},
		"docker.device_cgroup_rules":          {take: refuseSome("devices of the machine are not given to jobs")},
		"docker.gpus":                         {take: refuseSome("graphics cards are not given to jobs")},
		"docker.service_gpus":                 {take: refuseSome("graphics cards are not given to jobs")},
		"docker.security_opt":                 {take: refuseSome("the confinement of sandboxes is runnerd's")},
		"docker.services_security_opt":        {take: refuseSome("the confinement of sandboxes is runnerd's")},
		"docker.runtime":                      {take: refuseSome("the runtime is runnerd's")},
		"docker.volumes_from":                 {take: refuseSome("jobs share no files with containers of the machine")},
		"docker.cgroup_parent":                {take: refuseSome(cgroups)},
		"docker.service_cgroup_parent":        {take: refuseSome(cgroups)},
		"docker.service_slot_cgroup_template": {verdict: Ignored, note: cgroups},
		"docker.oom_kill_disable":             {take: refuseSome("a job that has no memory left is ended, not kept")},
		"docker.links":                        {take: refuseSome("jobs do not reach containers of the machine; use services:")},
		"docker.allowed_images":               {take: takeRestriction("any image may be used")},
		"docker.allowed_services":             {take: takeRestriction("any service may be used")},
		"docker.allowed_users":                {take: takeRestriction("a job may ask for any user, in its own user namespace")},
		"docker.allowed_pull_policies":        {take: takeRestriction("a job may ask for any pull policy; whether it may have an image, its registry is asked in any case")},
		"docker.disable_entrypoint_overwrite": {take: takeRestriction("a job may replace its image's entrypoint")},
		"docker.services_limit":               {verdict: Ignored, note: sharing},
		"docker.allowed_privileged_images":    {verdict: Ignored, note: "nothing is privileged"},
		"docker.allowed_privileged_services":  {verdict: Ignored, note: "nothing is privileged"},

		"docker.dns":                        {take: byHandText("network.dns, for all runners")},
		"docker.network_mtu":                {take: byHandText("network.mtu, for all runners")},
		"docker.dns_search":                 {verdict: Ignored, note: network},
		"docker.extra_hosts":                {verdict: ByHand, note: "names are resolved by the machine's servers: have the names there (network.dns)"},
		"docker.mac_address":                {verdict: Ignored, note: network},
		"docker.enable_ipv6":                {verdict: Ignored, note: network},
		"docker.hostname":                   {verdict: Ignored, note: "a sandbox is named for its job"},
		"docker.user":                       {verdict: ByHand, note: "the user is the image's, or the job's (image: docker: user:)"},
		"docker.group_add":                  {verdict: Ignored, note: "groups are the image's"},
		"docker.cap_drop":                   {verdict: Ignored, note: "capabilities reach no further than the sandbox"},
		"docker.memory_swap":                {verdict: Ignored, note: "swap counts as memory"},
		"docker.memory_reservation":         {verdict: Ignored, note: "a job is admitted when its memory is there"},
		"docker.cpu_shares":                 {verdict: Ignored, note: weighs},
		"docker.cpuset_cpus":                {verdict: Ignored, note: weighs},
		"docker.cpuset_mems":                {verdict: Ignored, note: weighs},
		"docker.oom_score_adjust":           {verdict: Ignored, note: "a job's memory is bounded by its cgroup"},
		"docker.shm_size":                   {verdict: Ignored, note: "/dev/shm is bounded by the sandbox's memory"},
		"docker.isolation":                  {verdict: Ignored, note: windows},
		"docker.disable_cache":              {verdict: Ignored, note: "caches are of those jobs alone that ask for them"},
		"docker.cache_dir":                  {verdict: Ignored, note: "caches are kept by runnerd, by project"},
		"docker.volume_keep":                {verdict: Ignored, note: fresh},
		"docker.volume_driver":              {verdict: Ignored, note: "there are no volumes between jobs"},
		"docker.helper_image":               {verdict: Ignored, note: "runnerd has git in an image of its own (sandbox_image)"},
		"docker.helper_image_flavor":        {verdict: Ignored, note: "runnerd has git in an image of its own (sandbox_image)"},
		"docker.wait_for_services_timeout":  {verdict: Ignored, note: "services are waited for as long as gitlab-runner's default"},
		"docker.service_memory":             {verdict: Ignored, note: sharing},
		"docker.service_memory_swap":        {verdict: Ignored, note: sharing},
		"docker.service_memory_reservation": {verdict: Ignored, note: sharing},
		"docker.service_cpus":               {verdict: Ignored, note: sharing},
		"docker.service_cpu_shares":         {verdict: Ignored, note: sharing},
		"docker.service_cpuset_cpus":        {verdict: Ignored, note: sharing},
	} {
		all["runners."+name] = r
	}
	for _, name := range s3Keys() {
		all["runners.cache.s3."+name] = rule{take: takeS3}
	}
	return all
}
