package configtoml

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/runnerd/runnerd/runner/gitlab"
	"github.com/runnerd/runnerd/sandbox"
)

func takeConcurrent(b *builder, k key) (Verdict, string) {
	n, ok := k.number()
	if !ok || n < 1 || n > math.MaxInt32 {
		return Ignored, fmt.Sprintf("%s is no number of jobs", k.text())
	}
	b.concurrent = int(n)
	return Taken, fmt.Sprintf("at most %d jobs for each runner; for all of them together set capacity.jobs: %d", n, n)
}

// byHandText says where else a value is to be set.
func byHandText(where string) func(*builder, key) (Verdict, string) {
	return func(_ *builder, k key) (Verdict, string) {
		return ByHand, fmt.Sprintf("set %s; it was %s", where, strings.Join(valueTexts(k), ", "))
	}
}

func valueTexts(k key) []string {
	if _, ok := k.value.([]any); ok {
		return k.list()
	}
	return []string{k.text()}
}

func takeName(b *builder, k key) (Verdict, string) {
	b.runner(k).Description = k.text()
	return Taken, "name: " + nameOf(k.text(), k.runner)
}

func takeURL(b *builder, k key) (Verdict, string) {
	r := b.runner(k)
	if strings.Contains(k.text(), "$") {
		r.refuse("url: it holds a variable: write out what it stands for")
		return Refused, "it holds a variable: write out what it stands for"
	}
	url, err := gitlab.NormalURL(k.text())
	if err != nil {
		r.refuse("url: " + err.Error())
		return Refused, err.Error()
	}
	r.URL = url
	return Taken, "url: " + url
}

func takeCloneURL(b *builder, k key) (Verdict, string) {
	url, err := gitlab.NormalURL(k.text())
	if err != nil {
		return Refused, err.Error()
	}
	b.runner(k).CloneURL = url
	return Taken, "clone_url: " + url
}

func takeToken(b *builder, k key) (Verdict, string) {
	b.runner(k).Token = k.text()
	return Taken, "token: " + gitlab.ShortToken(k.text()) + "…"
}

func takeTokenObtained(b *builder, k key) (Verdict, string) {
	t, ok := k.value.(time.Time)
	if !ok || t.Year() <= 1 {
		return Ignored, "it is not known"
	}
	b.runner(k).TokenObtained = t.UTC()
	return Taken, "when the token is to be renewed is counted from " + t.UTC().Format(time.RFC3339)
}

func takeCAFile(b *builder, k key) (Verdict, string) {
	if !path.IsAbs(k.text()) {
		b.runner(k).refuse("tls-ca-file: " + k.text() + " is no absolute path")
		return Refused, "it is no absolute path"
	}
	b.runner(k).CAFile = path.Clean(k.text())
	return Taken, "ca_file: " + path.Clean(k.text()) + ": it must stay there"
}

func takeLimit(b *builder, k key) (Verdict, string) {
	n, ok := k.number()
	if !ok || n < 0 || n > math.MaxInt32 {
		return Ignored, fmt.Sprintf("%s is no number of jobs", k.text())
	}
	if n == 0 {
		return Taken, "no limit of its own"
	}
	b.runner(k).Concurrent = int(n)
	return Taken, fmt.Sprintf("concurrent: %d", n)
}

// takeExecutor takes docker's, and refuses the runner with any other.
func takeExecutor(b *builder, k key) (Verdict, string) {
	r := b.runner(k)
	r.executor = k.text()
	why := "runnerd has no such executor"
	switch k.text() {
	case "docker":
		return Taken, "each job has a sandbox of its own, with its image"
	case "shell":
		why = "jobs would run on the machine itself, with all that is on it: use docker, with an image that has what they need"
	case "ssh", "virtualbox", "parallels", "instance", "custom":
		why = "its jobs run elsewhere or outside of any sandbox: use docker, with an image that has what they need"
	case "kubernetes":
		why = "its jobs run in a cluster: let gitlab-runner go on there, or use docker for a runner on this machine"
	case "docker+machine", "docker-autoscaler", "docker-ssh", "docker-ssh+machine":
		why = "its jobs run on machines that it starts: install runnerd on those, or use docker for a runner on this machine"
	case "docker-windows":
		why = "runnerd runs on Linux"
	}
	r.refuse("executor " + strconv.Quote(k.text()) + ": " + why)
	return Refused, why
}

func takeShell(b *builder, k key) (Verdict, string) {
	if k.text() == "bash" || k.text() == "sh" {
		return Ignored, "the image's bash is used if it has one, else sh"
	}
	b.runner(k).refuse("shell " + strconv.Quote(k.text()) + ": jobs are run by bash or sh")
	return Refused, "jobs are run by bash or sh"
}

func takeBuilds(b *builder, k key) (Verdict, string) {
	dir := k.text()
	if !path.IsAbs(dir) || strings.ContainsAny(dir, "$\n") {
		return Refused, "it is no absolute path without variables"
	}
	b.runner(k).Builds = path.Clean(dir)
	return Taken, "builds: " + path.Clean(dir)
}

func takeEnvironment(b *builder, k key) (Verdict, string) {
	var names, wrong []string
	for _, e := range k.list() {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" || strings.ContainsRune(e, 0) {
			wrong = append(wrong, strconv.Quote(name))
			continue
		}
		names = append(names, name)
		b.runner(k).Env = append(b.runner(k).Env, e)
	}
	if len(wrong) > 0 {
		return Refused, "not KEY=value: " + strings.Join(wrong, ", ") + "; taken: " + strings.Join(names, ", ")
	}
	return Taken, "env: " + strings.Join(names, ", ") // their values may be secrets
}

// takeFeatureFlag makes a flag a variable of the jobs', as which users set them, too.
func takeFeatureFlag(b *builder, k key) (Verdict, string) {
	name := k.name()
	on, ok := k.value.(bool)
	if !ok || !strings.HasPrefix(name, "FF_") || strings.Contains(name, "=") {
		return Refused, "it is no FF_… that is true or false"
	}
	b.runner(k).Env = append(b.runner(k).Env, fmt.Sprintf("%s=%t", name, on))
	return Taken, fmt.Sprintf("env: %s=%t: some of the flags mean something here", name, on)
}

func takeDebugTrace(b *builder, k key) (Verdict, string) {
	if k.yes() {
		return restrict(b, k, "a job may turn on CI_DEBUG_TRACE")
	}
	return Ignored, "it is off"
}

func takeImage(b *builder, k key) (Verdict, string) {
	b.runner(k).Image = k.text()
	return Taken, "image: " + k.text()
}

func takePullPolicy(b *builder, k key) (Verdict, string) {
	all := k.list()
	if len(all) == 0 {
		return Ignored, "it names none"
	}
	p := sandbox.PullPolicy(all[0])
	if !slices.Contains([]sandbox.PullPolicy{sandbox.Always, sandbox.IfNotPresent, sandbox.Never}, p) {
		return Refused, strconv.Quote(all[0]) + " is not known"
	}
	b.runner(k).Pull = p
	if len(all) > 1 {
		return Taken, "pull: " + all[0] + "; the others were for when it fails"
	}
	return Taken, "pull: " + all[0]
}

func takeMemory(b *builder, k key) (Verdict, string) {
	n, err := units.RAMInBytes(k.text())
	if err != nil || n <= 0 {
		return Refused, strconv.Quote(k.text()) + " is no size"
	}
	b.runner(k).Limits.Memory = n
	return Taken, "memory: " + units.BytesSize(float64(n))
}

func takeCPUs(b *builder, k key) (Verdict, string) {
	n, err := strconv.ParseFloat(k.text(), 64)
	if err != nil || !(n > 0 && n < 1e6) {
		return Refused, strconv.Quote(k.text()) + " is no number of processors"
	}
	b.runner(k).Limits.CPU = sandbox.MilliCPU(math.Ceil(n * 1000))
	return Taken, "cpu: " + k.text()
}

func refusePrivileged(_ *builder, k key) (Verdict, string) {
	if !k.yes() {
		return Ignored, "nothing is privileged"
	}
	return Refused, "not needed: a job with docker:dind has its sandbox's own engine, and nothing is privileged on the machine"
}

// takeVolumes judges each of them.
func takeVolumes(b *builder, k key) (Verdict, string) {
	verdict := Ignored
	var notes []string
	for _, v := range k.list() {
		from, to, bind := strings.Cut(v, ":")
		switch {
		case strings.Contains(v, "docker.sock"):
			verdict = Refused
			b.runner(k).Nesting = sandbox.Nesting{sandbox.Container, sandbox.DinD}
			notes = append(notes, v+": refused: the machine's engine would be shared by all jobs, and whoever has it is root; each job gets an engine of its own (sandbox: container/dind)")
		case bind && path.IsAbs(from):
			verdict = Refused
			notes = append(notes, v+": refused: files of the machine are not given to jobs")
		case bind:
			notes = append(notes, v+": a volume of several jobs is none here: use cache: for "+to)
		case v == "/cache":
			notes = append(notes, v+": caches are kept by runnerd")
		case strings.HasPrefix(v, "/certs"):
			notes = append(notes, v+": the sandbox's own engine brings its certificates")
		default:
			notes = append(notes, v+": it lies on the sandbox's disk")
		}
	}
	if len(notes) == 0 {
		return Ignored, "there are none"
	}
	return verdict, strings.Join(notes, "; ")
}

func takeNetworkMode(_ *builder, k key) (Verdict, string) {
	switch k.text() {
	case "", "bridge", "default":
		return Ignored, "a sandbox has a network of its own"
	case "host":
		return Refused, "jobs are not on the machine's network: they would reach all that listens on it"
	}
	return Refused, "jobs share no network with containers of the machine"
}

// refuseHost refuses what lets jobs into a namespace of the machine or of another container.
func refuseHost(why string) func(*builder, key) (Verdict, string) {
	return func(_ *builder, k key) (Verdict, string) {
		if k.text() == "" || k.text() == "private" {
			return Ignored, why
		}
		return Refused, why
	}
}

// refuseSome refuses what is not empty.
func refuseSome(why string) func(*builder, key) (Verdict, string) {
	return func(_ *builder, k key) (Verdict, string) {
		if k.value == false || k.value == "" || isEmpty(k.value) {
			return Ignored, "it is off"
		}
		return Refused, why
	}
}

func isEmpty(v any) bool {
	list, ok := v.([]any)
	return ok && len(list) == 0
}

// refuseRunner refuses the runner for a value that is not empty.
func refuseRunner(why string) func(*builder, key) (Verdict, string) {
	return func(b *builder, k key) (Verdict, string) {
		if k.text() == "" {
			return Ignored, "it is empty"
		}
		b.runner(k).refuse(k.name() + ": " + why)
		return Refused, why
	}
}

// takeScript takes over commands that are put into each job.
func takeScript(b *builder, k key) (Verdict, string) {
	if strings.TrimSpace(k.text()) == "" {
		return Ignored, "it is empty"
	}
	scripts := &b.runner(k).Scripts
	name := strings.Replace(k.name(), "_clone_", "_get_sources_", 1) // as it is called since GitLab 16
	switch name {
	case "pre_get_sources_script":
		scripts.PreGetSources = k.text()
	case "post_get_sources_script":
		scripts.PostGetSources = k.text()
	case "pre_build_script":
		scripts.PreBuild = k.text()
	case "post_build_script":
		scripts.PostBuild = k.text()
	}
	return Taken, name + " of the runner"
}

// takeOutputLimit takes over how large a log may be, which the file says in KiB.
func takeOutputLimit(b *builder, k key) (Verdict, string) {
	n, ok := k.number()
	if !ok || n < 0 || n > math.MaxInt64>>10 {
		return Ignored, fmt.Sprintf("%s is no number of KiB", k.text())
	}
	b.runner(k).OutputLimit = n << 10
	return Taken, fmt.Sprintf("output_limit: %d KiB", n)
}

// takeRestriction takes over a runner without one of its restrictions, but not unless that is wanted.
func takeRestriction(wider string) func(*builder, key) (Verdict, string) {
	return func(b *builder, k key) (Verdict, string) {
		if k.value == false || isEmpty(k.value) {
			return Ignored, "it is off"
		}
		return restrict(b, k, wider)
	}
}

func restrict(b *builder, k key, wider string) (Verdict, string) {
	r := b.runner(k)
	r.Widens = append(r.Widens, k.name()+": "+wider)
	return Refused, "there is no such restriction here: " + wider
}
