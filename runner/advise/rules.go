package advise

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// pair is a project and something of it.
type pair struct{ project, of string }

func byPair(a, b pair) int { return cmp.Or(cmp.Compare(a.project, b.project), cmp.Compare(a.of, b.of)) }

// engineStages are what a place for an engine costs, and the engine itself.
var engineStages = []sandbox.StageName{sandbox.StageEngine, sandbox.StageDockerd, sandbox.StageBuilder}

// engineTime is how long opening and closing the engine of a job's sandbox took. Its container and what runs in that
// start one within the other, so the longer of both counts.
func engineTime(j Job) (d time.Duration) {
	for _, stages := range [][]sandbox.Stage{j.Result.Usage.SetUp, j.Result.Usage.TearDown} {
		took := map[sandbox.StageName]time.Duration{}
		for _, s := range stages {
			if slices.Contains(engineStages, s.Name) {
				took[s.Name] = s.Took
			}
		}
		d += max(took[sandbox.StageEngine], took[sandbox.StageDockerd]) + took[sandbox.StageBuilder]
	}
	return d
}

// engines looks at jobs by project and name that have a place for an engine: those that never use it, and those that
// use it for nothing but to run images as they are.
func engines(jobs []Job) (all []Advice) {
	keys, groups := grouped(jobs, func(j Job) (pair, bool) {
		return pair{j.Project, j.Name}, j.Result.Usage.Engine != nil
	}, byPair)
	unused := map[string][]pair{}
	for _, k := range keys {
		group := groups[k]
		if len(group) < minGroup {
			continue
		}
		if !slices.ContainsFunc(group, func(j Job) bool { return j.Result.Usage.Engine.Used(j.Result.Usage) }) {
			unused[k.project] = append(unused[k.project], k)
			continue
		}
		if a, ok := flatten(k, group); ok {
			all = append(all, a)
		}
	}
	for _, project := range slices.Sorted(maps.Keys(unused)) {
		var group []Job
		var names []string
		for _, k := range unused[project] {
			group = append(group, groups[k]...)
			names = append(names, k.of)
		}
		all = append(all, Advice{
			Kind: DropEngine, Project: project, Subject: strings.Join(names, ", "), Jobs: len(group),
			SavedSeconds: sum(group, engineTime).Seconds(),
			Text: fmt.Sprintf("%d jobs (%s) have a Docker Engine and never used it: it ran no container, got no image and built nothing. Ask for the sandbox container in place of container/dind, or leave the service docker:dind out.",
				len(group), strings.Join(names, ", ")),
		})
	}
	return all
}

// flatten looks at jobs whose engine runs the same few images each time and builds nothing: they could be services.
func flatten(k pair, group []Job) (Advice, bool) {
	const fewImages = 3
	var images []string
	for _, j := range group {
		e := j.Result.Usage.Engine
		var names []string
		for _, p := range e.Images {
			names = append(names, p.Image)
		}
		slices.Sort(names)
		if e.Built || len(names) == 0 || len(names) > fewImages || images != nil && !slices.Equal(images, names) {
			return Advice{}, false
		}
		images = names
	}
	saved := sum(group, func(j Job) time.Duration { return engineTime(j) + pullTime(j, "") })
	return Advice{
		Kind: Flatten, Project: k.project, Subject: strings.Join(images, ", "), Jobs: len(group), SavedSeconds: saved.Seconds(),
		Text: fmt.Sprintf("%d jobs %q use their engine for nothing but to run %s. As a service of the job, or as its image, it starts beside the job from layers that this machine has unpacked once, without an engine.",
			len(group), k.of, strings.Join(images, ", ")),
	}, true
}

// pullTime is how long a job's pulls of an image took, or of all.
func pullTime(j Job, image string) (d time.Duration) {
	if e := j.Result.Usage.Engine; e != nil {
		for _, p := range e.Images {
			if image == "" || p.Image == image {
				d += p.Took
			}
		}
	}
	return d
}

// pulls looks for images that come into engines of a project again and again.
func pulls(jobs []Job) (all []Advice) {
	const often = 10
	groups, times := map[pair][]Job{}, map[pair]int{}
	for _, j := range jobs {
		if e := j.Result.Usage.Engine; e != nil {
			for _, p := range e.Images {
				k := pair{j.Project, p.Image}
				groups[k] = append(groups[k], j)
				times[k] += p.Times
			}
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(groups), byPair) {
		n := times[k]
		if n < often {
			continue
		}
		took := sum(groups[k], func(j Job) time.Duration { return pullTime(j, k.of) })
		all = append(all, Advice{
			Kind: KeepImage, Project: k.project, Subject: k.of, Jobs: len(groups[k]),
			SavedSeconds: took.Seconds() * float64(n-1) / float64(n), // once it has to be
			Text: fmt.Sprintf("%s was pulled %d times into the engines of %d jobs, and unpacked each time, which is not in these seconds. Build with the project's builder (docker build without --builder default), whose layers stay; or make it the job's image or a service, which this machine unpacks once.",
				k.of, n, len(groups[k])),
		})
	}
	return all
}

// cold looks for sandboxes of one kind that jobs have waited for.
func cold(jobs []Job) (all []Advice) {
	const often, pooled = 10, 10 * time.Millisecond // what one of a pool takes
	opening := func(j Job) time.Duration {
		t := j.Result.Times
		if t.Admitted.IsZero() || t.Opened.IsZero() {
			return 0
		}
		return max(0, t.Opened.Sub(t.Admitted)-pooled)
	}
	keys, groups := grouped(jobs, func(j Job) (pair, bool) {
		built := slices.Contains(j.Nesting, sandbox.BuildKit) || len(j.Nesting) == 0 // a builder is kept anyhow
		return pair{j.Nesting.String(), j.Image}, !built && opening(j) > 0
	}, byPair)
	for _, k := range keys {
		group := groups[k]
		if len(group) < often {
			continue
		}
		all = append(all, Advice{
			Kind: KeepReady, Subject: k.project + " with " + k.of, Jobs: len(group), SavedSeconds: sum(group, opening).Seconds(),
			Text: fmt.Sprintf("%d jobs have waited for a sandbox to be opened, %s in the middle. Keep some ready: pool: [{sandbox: %s, image: %q, size: 2}].",
				len(group), median(group, opening).Round(time.Millisecond), k.project, k.of),
		})
	}
	return all
}

func median(jobs []Job, of func(Job) time.Duration) time.Duration {
	var all []time.Duration
	for _, j := range jobs {
		all = append(all, of(j))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// waits looks for jobs that wait until they fit, and then use little of the memory that they have waited for.
func waits(jobs []Job) (all []Advice) {
	const little = 4
	waited := func(j Job) time.Duration {
		t := j.Result.Times
		if t.Accepted.IsZero() || t.Admitted.IsZero() {
			return 0
		}
		return t.Admitted.Sub(t.Accepted)
	}
	keys, groups := grouped(jobs, func(j Job) (pair, bool) {
		return pair{j.Project, j.Name}, j.Limits.Memory > 0 && waited(j) > time.Second
	}, byPair)
	for _, k := range keys {
		group := groups[k]
		var peak, limit int64
		for _, j := range group {
			peak, limit = max(peak, j.Result.Usage.MemoryPeak), max(limit, j.Limits.Memory)
		}
		if len(group) < minGroup || peak == 0 || peak > limit/little {
			continue
		}
		enough := (2*peak + 63<<20) / (64 << 20) * 64 // MiB
		all = append(all, Advice{
			Kind: LowerMemory, Project: k.project, Subject: k.of, Jobs: len(group), SavedSeconds: sum(group, waited).Seconds(),
			Text: fmt.Sprintf("%d jobs %q have waited for room with a limit of %d MiB and used %d MiB at most. With %d MiB they would have waited less: these seconds are the most that it would have saved.",
				len(group), k.of, limit>>20, peak>>20, enough),
		})
	}
	return all
}
