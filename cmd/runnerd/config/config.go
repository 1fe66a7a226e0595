// Package config is runnerd's configuration: one strict YAML file, and defaults that need no file at all.
package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/sandbox"
)

// DefaultPath is where the configuration is looked for when none is named. It need not exist.
const DefaultPath = "/etc/runnerd/runnerd.yaml"

// Config is the whole configuration. The doc tags are the descriptions in the JSON Schema and the comments in
// the reference file.
type Config struct {
	Version  int    `yaml:"version" doc:"Version of this format. There is only 1."`
	StateDir string `yaml:"state_dir" doc:"Where everything that outlives a restart is kept: queue, logs, images, caches, disks. One runnerd per directory. Overridden by --state-dir."`
	RunDir   string `yaml:"run_dir" doc:"Where sockets and mounts are; empty after a boot. With --state-dir DIR and nothing here it is DIR/run."`
	Socket   Socket `yaml:"socket" doc:"The socket that the command line and other clients speak to. Whoever may open it may run jobs and see all of them."`

	EnginesDir             string     `yaml:"engines_dir" doc:"The engines that 'make engines' builds. Empty: the directory engines beside the executable, else /usr/local/lib/runnerd/engines."`
	AllowVulnerableEngines bool       `yaml:"allow_vulnerable_engines" doc:"Start although an engine has a known way out of the sandbox. Never in production."`
	Images                 Images     `yaml:"images" doc:"Images that are there without any network."`
	Containerd             Containerd `yaml:"containerd" doc:"The containerd that holds the sandboxes."`
	Network                Network    `yaml:"network" doc:"The network of the sandboxes."`
	UIDRange               UIDRange   `yaml:"uid_range" doc:"The host uids and gids that sandboxes run as. Every sandbox has a range of 65536 of its own; nothing else on the machine may use them."`

	Limits   Limits   `yaml:"limits" doc:"What one job may use."`
	Capacity Capacity `yaml:"capacity" doc:"What all jobs together may hold. A job waits until it fits."`
	Timeout  Timeout  `yaml:"timeout" doc:"How long a job may run, counted from when it fits."`
	Drain    Duration `yaml:"drain" doc:"How long running jobs may go on after runnerd was told to stop, before they are cancelled."`
	Disk     Disk     `yaml:"disk" doc:"What all that is kept in state_dir may take together: caches, images, registry, builders, logs, the disks of jobs. What is worth least goes first. See 'runnerd cache du'."`
	Logs     Logs     `yaml:"logs" doc:"The logs of jobs."`
	Outputs  Outputs  `yaml:"outputs" doc:"The files that builds write, until their clients have fetched them."`
	Cache    Cache    `yaml:"cache" doc:"The caches of CI jobs, and what jobs leave (artifacts)."`
	Policy   Policy   `yaml:"policy" doc:"Which nestings of sandboxes may run. What is not listed is refused."`
	Plugins  Plugins  `yaml:"plugins" doc:"WebAssembly modules (WASI preview 1) of the operator's that decide about jobs. A file that is replaced is used at once."`
	Pool     []Pool   `yaml:"pool" doc:"Sandboxes that are started ahead, so that a job of the same kind and image begins at once, such as: {sandbox: container, image: debian:bookworm-slim, size: 4}."`

	Spare Spare `yaml:"spare" doc:"Sandboxes that are started ahead without being configured as a pool: of the kinds and images that jobs asked for last, as many as were asked for at once."`

	Builder      Builder  `yaml:"builder" doc:"The BuildKit workers, one a scope: what a project trusts, and the rest of it."`
	Registry     Registry `yaml:"registry" doc:"The registry in runnerd: where images come from and where builds are pushed to."`
	SandboxImage string   `yaml:"sandbox_image" doc:"The image of engines: dockerd, buildkitd, docker, buildx, git."`
	JobImage     string   `yaml:"job_image" doc:"The image of a job that names none."`
	PullPolicy   string   `yaml:"pull_policy" doc:"When an image's registry is asked for it, for a job that does not say. if-not-present: not before registry.mirror.refresh is over. always: each time, and the job fails if it does not answer. never: not at all." enum:"if-not-present,always,never"`
	Metrics      Metrics  `yaml:"metrics" doc:"Figures for Prometheus. They are served on the socket, too: GET /metrics."`
	Terminal     Terminal `yaml:"terminal" doc:"Interactive web terminals: a shell in a job of GitLab that runs, for whoever may open it there."`
	Log          Log      `yaml:"log" doc:"What runnerd itself says, on its standard error."`
}

// Socket is the API's socket.
type Socket struct {
	Path  string   `yaml:"path" doc:"Empty: runnerd.sock in run_dir. Overridden by --socket."`
	Mode  FileMode `yaml:"mode" doc:"Its permissions, octal."`
	Group string   `yaml:"group" doc:"The group that may use it. Empty: the group runnerd if it exists, else root only."`
}

// Images are those that are loaded at start.
type Images struct {
	Preload []string `yaml:"preload" doc:"OCI layout directories to load into the registry at start. Empty: the directory images beside the executable, if it exists."`
}

// Containerd says which containerd to use.
type Containerd struct {
	Address string `yaml:"address" doc:"Its socket. Empty: runnerd starts one of its own, from engines_dir. Another one needs content_sharing_policy = \"isolated\" of its metadata plugin, or private images of one project may reach another."`
}

// Network is the sandboxes'.
type Network struct {
	Subnet netip.Prefix `yaml:"subnet" doc:"Where sandboxes get their addresses from. It must not be in use elsewhere."`
	MTU    int          `yaml:"mtu" doc:"Of the sandboxes' interfaces, in bytes. 0: derived from the machine's."`
	DNS    []netip.Addr `yaml:"dns" doc:"The sandboxes' name servers. Empty: those of the machine."`
}

// UIDRange is where sandboxes get their ids from.
type UIDRange struct {
	First uint32 `yaml:"first" doc:"The first id, a multiple of 65536."`
	Count int    `yaml:"count" doc:"How many ranges, and so how many sandboxes at once."`
}

// Limits are those of one job.
type Limits struct {
	Default Bounds `yaml:"default" doc:"For a job that does not say."`
	Max     Bounds `yaml:"max" doc:"The most that a job may ask for; 0: as much as capacity allows."`
}

// Bounds are the limits of a sandbox.
type Bounds struct {
	CPU    CPU   `yaml:"cpu" doc:"Processors: 1.5 or 1500m."`
	Memory Size  `yaml:"memory" doc:"Memory, swap included: 512MiB."`
	PIDs   int64 `yaml:"pids" doc:"Processes and threads."`
	Disk   Size  `yaml:"disk" doc:"The scratch disk."`
	Inodes int64 `yaml:"inodes" doc:"Files on the scratch disk."`
}

// Limits returns the bounds as a sandbox's limits.
func (b Bounds) Limits() sandbox.Limits {
	return sandbox.Limits{CPU: sandbox.MilliCPU(b.CPU), Memory: int64(b.Memory), PIDs: b.PIDs, Disk: int64(b.Disk), Inodes: b.Inodes}
}

// Capacity is what all jobs together may hold.
type Capacity struct {
	CPU    CPU  `yaml:"cpu" doc:"Processors. 0: those of the machine."`
	Memory Size `yaml:"memory" doc:"Memory. 0: 80 % of the machine's."`
	Jobs   int  `yaml:"jobs" doc:"Jobs at once. 0: 32 for each processor."`
}

// Timeout is that of jobs.
type Timeout struct {
	Default Duration `yaml:"default" doc:"For a job that does not say."`
	Max     Duration `yaml:"max" doc:"The longest that is granted."`
}

// Disk is the budget of all that is kept.
type Disk struct {
	Budget Share    `yaml:"budget" doc:"How much, as a size or a percentage of the file system. 0: all that floor and other users of the file system leave."`
	High   Share    `yaml:"high" doc:"Above this part of the budget a job's start, or an idle daemon, prunes. A size or a percentage."`
	Low    Share    `yaml:"low" doc:"To which is pruned then. A size or a percentage."`
	Floor  Share    `yaml:"floor" doc:"What is kept free on the file system: below it jobs wait. A size or a percentage of the file system; at least 64MiB are kept free."`
	MinAge Duration `yaml:"min_age" doc:"What was used in this time is not pruned, unless less than floor is free."`
	Wait   Duration `yaml:"wait" doc:"How long a job waits for room before it fails."`
}

// Limits returns the limits as the budget package has them.
func (d Disk) Limits() budget.Limits {
	return budget.Limits{
		Budget: budget.Share(d.Budget), High: budget.Share(d.High), Low: budget.Share(d.Low), Floor: budget.Share(d.Floor),
		MinAge: time.Duration(d.MinAge), Wait: time.Duration(d.Wait),
	}
}

// Logs are those of jobs.
type Logs struct {
	MaxBytes Size     `yaml:"max_bytes" doc:"The size of one job's log. Of a longer one the beginning and the end are kept."`
	Keep     Duration `yaml:"keep" doc:"How long finished jobs and their logs are kept."`
	KeepJobs int      `yaml:"keep_jobs" doc:"How many finished jobs are kept."`
}

// Outputs are the files that builds write.
type Outputs struct {
	MaxBytes Size     `yaml:"max_bytes" doc:"The size of all of them together. A build that would exceed it fails."`
	Keep     Duration `yaml:"keep" doc:"How long they are kept for a client that does not fetch them."`
}

// Cache is that of CI jobs.
type Cache struct {
	URL          string   `yaml:"url" doc:"The bucket, such as s3://NAME?region=eu-west-1, with endpoint=https://HOST&use_path_style=true for one that is not Amazon's. Credentials are looked for as AWS's tools do. Empty: the directory cache in state_dir."`
	MaxEntry     Size     `yaml:"max_entry" doc:"The most that one cache or artifact may have, before compression."`
	MaxFiles     int64    `yaml:"max_files" doc:"The most files that one may have."`
	Timeout      Duration `yaml:"timeout" doc:"How long one may take to be saved or restored. The job goes on without it."`
	Keep         Duration `yaml:"keep" doc:"How long a cache is kept that no job restores."`
	KeepArtifact Duration `yaml:"keep_artifacts" doc:"How long an artifact is kept that does not say."`
}

// Policy says which nestings may run.
type Policy struct {
	MaxDepth int                       `yaml:"max_depth" doc:"The largest number of layers."`
	May      map[string][]sandbox.Kind `yaml:"may" doc:"Which layer may hold which; 'machine' is the machine itself."`
}

// Plugins are modules that decide about jobs.
type Plugins struct {
	Admission string `yaml:"admission" doc:"The file of one that says whether a job may run: it gets the job as JSON and answers {\"allow\": true} or {\"allow\": false, \"reason\": \"…\"}. One that fails has denied it. Empty: policy decides alone."`
	LogFilter string `yaml:"log_filter" doc:"The file of one that reads what a job writes, secrets hidden, and writes what is kept of it and sent to forges. Of what one that fails has not written nothing is kept. Of builds the steps' output is left out. Empty: all is kept."`
}

// Machine is the key of Policy.May that stands for the machine itself.
const Machine = "machine"

// Sandbox returns the policy as the sandbox package has it.
func (p Policy) Sandbox() sandbox.Policy {
	out := sandbox.Policy{MaxDepth: p.MaxDepth, May: map[sandbox.Kind][]sandbox.Kind{}}
	for outer, inner := range p.May {
		if outer == Machine {
			outer = ""
		}
		out.May[sandbox.Kind(outer)] = inner
	}
	return out
}

// Pool is a number of sandboxes that are started ahead.
type Pool struct {
	Sandbox sandbox.Nesting `yaml:"sandbox" doc:"The nesting, such as container or container/dind."`
	Image   string          `yaml:"image" doc:"The image of the jobs. Empty: job_image."`
	Size    int             `yaml:"size" doc:"How many are kept ready."`
	Git     bool            `yaml:"git" doc:"Have git ready in each, whatever its image: jobs of GitLab get their sources with it."`
}

// Spare are sandboxes that are started ahead because jobs have asked for such.
type Spare struct {
	Size int      `yaml:"size" doc:"How many in all. 0: two for each processor."`
	Keep Duration `yaml:"keep" doc:"How long after the last job that asked for one. 0s: none are started ahead."`
}

// Builder is a BuildKit worker.
type Builder struct {
	Image     string     `yaml:"image" doc:"Its image. Empty: sandbox_image."`
	Memory    Size       `yaml:"memory" doc:"Memory of one worker. 0: half of capacity.memory."`
	CPU       CPU        `yaml:"cpu" doc:"Processors of one worker. 0: capacity.cpu."`
	Disk      Size       `yaml:"disk" doc:"Size of its cache disk. Above 4/5, what was not used for longest is removed before a build starts."`
	Idle      Duration   `yaml:"idle" doc:"After how long without a build a worker is stopped. The cache of a trusted scope stays."`
	Frontends []string   `yaml:"frontends" doc:"Images that '# syntax=' lines may name, such as docker/dockerfile. Others are refused."`
	Share     CacheShare `yaml:"share" doc:"Sharing the cache of builds with the daemons of other machines, through a registry."`
	Insecure  []string   `yaml:"insecure_registries" doc:"Registries that are spoken to over plain HTTP, host:port."`
}

// CacheShare is a registry through which machines share the cache of builds.
type CacheShare struct {
	Ref          string `yaml:"ref" doc:"The repository below which each trusted scope has one, such as registry.example.com/cache. Builds import from it, and export to it what is measured to pay. Who may write there, may poison every build: the registry must ask others for credentials, and these should be good for nothing else there. Empty: nothing is shared."`
	Username     string `yaml:"username" doc:"The registry's user."`
	PasswordFile string `yaml:"password_file" doc:"The file that holds the password. Empty: none is needed."`
}

// Registry is runnerd's own.
type Registry struct {
	Address string   `yaml:"address" doc:"Where it listens; without a host, on the sandboxes' gateway and the loopback only."`
	Root    string   `yaml:"root" doc:"Where it keeps its blobs. Empty: the directory registry in state_dir."`
	Shared  []string `yaml:"shared" doc:"Repositories that trusted jobs push and jobs of other projects may read, such as base/*: patterns as of path.Match. Empty: projects read their own, and what the machine's operator pushes."`
	Mirror  Mirror   `yaml:"mirror" doc:"Other registries, whose images are fetched once and kept. Jobs, builders and engines in sandboxes get them from here."`
}

// Mirror says which images are fetched from elsewhere.
type Mirror struct {
	Upstreams []Upstream `yaml:"upstreams" doc:"The registries. Of others images are pulled, but not kept here. An empty list keeps this machine from asking any."`
	Refresh   Duration   `yaml:"refresh" doc:"How long what a tag means is taken for known, before its registry is asked again."`
}

// Upstream is another registry.
type Upstream struct {
	Host         string `yaml:"host" doc:"As in the names of images: docker.io, ghcr.io, registry.example.com:5000."`
	URL          string `yaml:"url" doc:"Where it answers, such as https://registry-1.docker.io. Empty: https:// and the host."`
	Username     string `yaml:"username" doc:"The operator's there. What is fetched with it, all jobs may use."`
	PasswordFile string `yaml:"password_file" doc:"A file with its password."`
}

// Metrics are figures for Prometheus.
type Metrics struct {
	Address string `yaml:"address" doc:"Where they are served over HTTP to whoever asks, host:port, such as 127.0.0.1:9252. Empty: nowhere."`
}

// Terminal is where GitLab reaches the terminals of jobs.
type Terminal struct {
	Listen    string   `yaml:"listen" doc:"Where GitLab may connect to, host:port, such as 0.0.0.0:8093, with TLS. Empty: there are no terminals."`
	Advertise string   `yaml:"advertise" doc:"The host:port by which GitLab reaches it, such as runner.example.com:8093. Empty: listen."`
	Timeout   Duration `yaml:"timeout" doc:"How long a job whose script has ended waits for a terminal that is still open, within the job's own timeout."`
}

// Log is runnerd's own.
type Log struct {
	Format string `yaml:"format" doc:"text or json." enum:"text,json"`
	Level  string `yaml:"level" doc:"debug, info, warn or error." enum:"debug,info,warn,error"`
}

// Default returns the configuration that applies without a file.
func Default() *Config {
	return &Config{
		Version:  1,
		StateDir: "/var/lib/runnerd",
		RunDir:   "/run/runnerd",
		Socket:   Socket{Mode: 0o660},
		Network:  Network{Subnet: netip.MustParsePrefix("10.87.0.0/16")},
		UIDRange: UIDRange{First: 1879048192, Count: 4096},
		Limits: Limits{
			Default: Bounds{CPU: 1000, Memory: 1 << 30, PIDs: 4096, Disk: 10 << 30, Inodes: 1_000_000},
			Max:     Bounds{PIDs: 65536, Disk: 200 << 30, Inodes: 20_000_000},
		},
		Timeout: Timeout{Default: Duration(time.Hour), Max: Duration(24 * time.Hour)},
		Drain:   Duration(time.Minute),
		Disk: Disk{
			High: Share{Percent: 85}, Low: Share{Percent: 70}, Floor: Share{Percent: 5},
			MinAge: Duration(10 * time.Minute), Wait: Duration(10 * time.Minute),
		},
		Logs:    Logs{MaxBytes: 16 << 20, Keep: Duration(7 * 24 * time.Hour), KeepJobs: 1000},
		Outputs: Outputs{MaxBytes: 20 << 30, Keep: Duration(time.Hour)},
		Cache: Cache{
			MaxEntry: 5 << 30, MaxFiles: 1_000_000, Timeout: Duration(10 * time.Minute),
			Keep: Duration(30 * 24 * time.Hour), KeepArtifact: Duration(7 * 24 * time.Hour),
		},
		Policy: Policy{MaxDepth: 2, May: map[string][]sandbox.Kind{
			Machine:                   {sandbox.Container},
			string(sandbox.Container): {sandbox.DinD, sandbox.BuildKit, sandbox.WASM},
		}},
		Spare:   Spare{Keep: Duration(10 * time.Minute)},
		Builder: Builder{Disk: 50 << 30, Idle: Duration(10 * time.Minute)},
		Registry: Registry{Address: ":5000", Mirror: Mirror{
			Upstreams: []Upstream{{Host: "docker.io", URL: "https://registry-1.docker.io"}}, Refresh: Duration(5 * time.Minute),
		}},
		SandboxImage: "runnerd/sandbox:latest",
		JobImage:     "debian:bookworm-slim",
		PullPolicy:   string(sandbox.IfNotPresent),
		Terminal:     Terminal{Timeout: Duration(30 * time.Minute)},
		Log:          Log{Format: "text", Level: "info"},
	}
}

// Resolve fills in what depends on this machine and on other options: what is documented as "Empty: …" and
// "0: …". It is safe to call twice.
func (c *Config) Resolve() {
	if c.Socket.Path == "" {
		c.Socket.Path = filepath.Join(c.RunDir, "runnerd.sock")
	}
	beside := "."
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		beside = filepath.Dir(exe)
	}
	if c.EnginesDir == "" {
		c.EnginesDir = "/usr/local/lib/runnerd/engines"
		if dir := filepath.Join(beside, "engines"); isDir(dir) {
			c.EnginesDir = dir
		}
	}
	if len(c.Images.Preload) == 0 {
		if dir := filepath.Join(beside, "images"); isDir(dir) {
			c.Images.Preload = []string{dir}
		}
	}
	if c.Capacity.CPU == 0 {
		c.Capacity.CPU = CPU(1000 * runtime.NumCPU())
	}
	if c.Capacity.Memory == 0 {
		c.Capacity.Memory = machineMemory() / 5 * 4
	}
	if c.Capacity.Jobs == 0 {
		c.Capacity.Jobs = 32 * runtime.NumCPU()
	}
	if c.Spare.Size == 0 {
		c.Spare.Size = 2 * runtime.NumCPU()
	}
	if c.Builder.CPU == 0 {
		c.Builder.CPU = c.Capacity.CPU
	}
	if c.Builder.Memory == 0 {
		c.Builder.Memory = c.Capacity.Memory / 2
	}
	if c.Builder.Image == "" {
		c.Builder.Image = c.SandboxImage
	}
	if c.Registry.Root == "" {
		c.Registry.Root = filepath.Join(c.StateDir, "registry")
	}
	for i, u := range c.Registry.Mirror.Upstreams {
		if u.URL == "" {
			c.Registry.Mirror.Upstreams[i].URL = "https://" + u.Host
		}
	}
	for i := range c.Pool {
		if c.Pool[i].Image == "" {
			c.Pool[i].Image = c.JobImage
		}
	}
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// machineMemory is MemTotal of proc_meminfo(5), in bytes; 1 GiB if that cannot be read.
func machineMemory() Size {
	text, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			if kib, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				return Size(kib << 10)
			}
		}
	}
	return 1 << 30
}
