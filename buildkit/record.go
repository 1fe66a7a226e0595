package buildkit

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// Record is what a build was made of, and what came of each of its steps.
type Record struct {
	Steps []Step // each after its inputs
	// Manifests are those of the local directories that it took files from, by Taken.From.
	Manifests map[string]Manifest

	recorder *recorder
}

// Step is a vertex of a build: an instruction of a Dockerfile, or what surrounds it.
type Step struct {
	Vertex digest.Digest `json:"vertex"` // BuildKit's; it changes with each build if local files go into the step
	// Key is set by Record.Complete. It stands for the instruction with all that goes into it, the contents of local files among it: two steps
	// with one Key do the same. It is empty if the contents are not all known.
	Key      string    `json:"key,omitempty"`
	Name     string    `json:"name"`             // "[stage 2/5] RUN make"
	Source   string    `json:"source,omitempty"` // what it loads, such as docker-image://…@sha256:…
	Args     []string  `json:"args,omitempty"`   // the command line of a RUN
	Env      []string  `json:"env,omitempty"`    // KEY=value, build arguments among them
	Dir      string    `json:"dir,omitempty"`
	User     string    `json:"user,omitempty"`
	Platform string    `json:"platform,omitempty"`
	Inputs   []int     `json:"inputs,omitempty"` // in Record.Steps
	Takes    []Taken   `json:"takes,omitempty"`
	NoCache  bool      `json:"no_cache,omitempty"`
	Numbered bool      `json:"numbered,omitempty"` // it is an instruction of a Dockerfile
	State    StepState `json:"state,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
	Error    string    `json:"error,omitempty"`
}

// Taken are the local files that go into a step.
type Taken struct {
	From    string   `json:"from"`              // a key of Record.Manifests
	Paths   []string `json:"paths"`             // with wildcards; "." for all
	Include []string `json:"include,omitempty"` // patterns as of .dockerignore; only these
	Exclude []string `json:"exclude,omitempty"`
}

// StepState is what came of a step.
type StepState string

// The states of steps. A step that was never asked for, or not reached, has none.
const (
	StepRun    StepState = "run"
	StepCached StepState = "cached"
)

// recorder learns what a build is made of before it runs.
type recorder struct {
	build    Build
	sessions map[string]string // as of solver
	keep     bool              // otherwise it does nothing

	mu     sync.Mutex
	ops    []definedOp
	known  map[digest.Digest]int
	locals map[string]localSource // by Taken.From
}

// localSource is a directory, and which of its files BuildKit asks for.
type localSource struct {
	dir   string
	asked asked
}

type definedOp struct {
	digest digest.Digest
	op     *pb.Op
	meta   *pb.OpMetadata
	local  string // a key of locals, if it is a local source
}

// define adds a result's definition.
func (r *recorder) define(ctx context.Context, result *gateway.Result) error {
	if !r.keep {
		return nil
	}
	return result.EachRef(func(ref gateway.Reference) error {
		state, err := ref.ToState()
		if err != nil {
			return err
		}
		def, err := state.Marshal(ctx)
		if err != nil {
			return err
		}
		return r.add(def.ToPB())
	})
}

func (r *recorder) add(def *pb.Definition) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, text := range def.Def {
		op := new(pb.Op)
		if err := op.Unmarshal(text); err != nil {
			return fmt.Errorf("read the build's definition: %w", err)
		}
		d := digest.FromBytes(text)
		if _, ok := r.known[d]; ok || op.Op == nil {
			continue
		}
		defined := definedOp{digest: d, op: op, meta: def.Metadata[string(d)]}
		if source := op.GetSource(); source != nil && strings.HasPrefix(source.Identifier, "local://") {
			defined.local = r.local(source)
		}
		r.known[d] = len(r.ops)
		r.ops = append(r.ops, defined)
	}
	return nil
}

// local notes a local source and returns its key.
func (r *recorder) local(source *pb.SourceOp) string {
	name := strings.TrimPrefix(source.Identifier, "local://")
	dir := r.build.Plan.Targets[r.build.Target].Context
	if path, ok := strings.CutPrefix(name, dirKey); ok {
		dir = path
	} else {
		for path, id := range r.sessions {
			if id == source.Attrs[pb.AttrLocalSessionID] {
				dir = path
			}
		}
	}
	asked := asked{
		include: patterns(source.Attrs[pb.AttrIncludePatterns]), exclude: patterns(source.Attrs[pb.AttrExcludePatterns]),
		follow: patterns(source.Attrs[pb.AttrFollowPaths]),
	}
	key := dir
	for n := 2; ; n++ { // one directory may be asked for in several ways
		if _, taken := r.locals[key]; !taken {
			break
		}
		key = fmt.Sprintf("%s (%d)", dir, n)
	}
	r.locals[key] = localSource{dir, asked}
	return key
}

func patterns(text string) (out []string) {
	_ = json.Unmarshal([]byte(text), &out) // BuildKit would refuse what is no list
	return out
}

// record is what is known when the build has ended, but for local files.
func (r *recorder) record(t *tally) Record {
	out := Record{recorder: r}
	number := map[digest.Digest]int{}
	for _, d := range r.ops {
		if d.local != "" {
			continue
		}
		step := r.describe(d)
		for _, in := range d.op.Inputs {
			if n, ok := number[digest.Digest(in.Digest)]; ok {
				step.Inputs = append(step.Inputs, n)
			}
		}
		step.tell(t.steps[d.digest])
		if step.State == "" { // BuildKit's name for a step that is not to be looked up
			step.tell(t.steps[digest.FromString(string(d.digest)+"-ignorecache")])
		}
		number[d.digest] = len(out.Steps)
		out.Steps = append(out.Steps, step)
	}
	return out
}

// Complete reads the local files and sets what depends on them: Manifests and keys. It is to be called when the build
// has ended, as long as its directory is there; it may take about half a second.
func (r *Record) Complete(ctx context.Context) {
	r.Manifests = map[string]Manifest{}
	for key, l := range r.recorder.locals {
		r.Manifests[key] = r.recorder.build.manifest(ctx, l.dir, l.asked)
	}
	keys := map[digest.Digest]string{}
	n := 0
	for _, d := range r.recorder.ops {
		if d.local == "" {
			step := &r.Steps[n]
			step.Key = r.key(d, step.Takes, keys)
			keys[d.digest] = step.Key
			n++
		}
	}
}

func (s *Step) tell(v *client.Vertex) {
	if v == nil {
		return
	}
	s.Error = v.Error
	if v.Started != nil {
		s.Started, s.State = *v.Started, StepRun
	}
	if v.Completed != nil {
		s.Ended = *v.Completed
	}
	if v.Cached {
		s.State = StepCached
	}
	s.Name, s.Numbered = v.Name, isStep(v)
}

// describe is a step without what came of it.
func (r *recorder) describe(d definedOp) Step {
	s := Step{Vertex: d.digest}
	if d.meta != nil {
		s.Name, s.NoCache = d.meta.Description["llb.customname"], d.meta.IgnoreCache
	}
	if p := d.op.Platform; p != nil {
		s.Platform = p.OS + "/" + p.Architecture
		if p.Variant != "" {
			s.Platform += "/" + p.Variant
		}
	}
	s.Numbered = isStep(&client.Vertex{Name: s.Name})
	switch op := d.op.Op.(type) {
	case *pb.Op_Source:
		s.Source = op.Source.Identifier
	case *pb.Op_Exec:
		if m := op.Exec.Meta; m != nil {
			s.Args, s.Env, s.Dir, s.User = m.Args, m.Env, m.Cwd, m.User
		}
		for _, m := range op.Exec.Mounts {
			r.takes(&s, d, m.Input, Taken{Paths: []string{m.Selector}})
		}
	case *pb.Op_File:
		for _, action := range op.File.Actions {
			if c := action.GetCopy(); c != nil {
				r.takes(&s, d, action.SecondaryInput, Taken{Paths: []string{c.Src}, Include: c.IncludePatterns, Exclude: c.ExcludePatterns})
			}
		}
	}
	return s
}

// takes notes what a step takes from an input, if that is a local directory.
func (r *recorder) takes(s *Step, d definedOp, input int64, t Taken) {
	if input < 0 || int(input) >= len(d.op.Inputs) {
		return
	}
	n, ok := r.known[digest.Digest(d.op.Inputs[input].Digest)]
	if !ok || r.ops[n].local == "" {
		return
	}
	t.From = r.ops[n].local
	for i, path := range t.Paths {
		t.Paths[i] = cleanPath(path)
	}
	s.Takes = append(s.Takes, t)
}

// key is the digest of the step's definition with its inputs' keys instead of their digests, and the contents
// that it takes from local sources instead of those.
func (r *Record) key(d definedOp, takes []Taken, keys map[digest.Digest]string) string {
	op := d.op.CloneVT()
	for _, in := range op.Inputs {
		n, ok := r.recorder.known[digest.Digest(in.Digest)]
		if !ok {
			return ""
		}
		key := keys[digest.Digest(in.Digest)]
		if local := r.recorder.ops[n].local; local != "" {
			own := slices.DeleteFunc(slices.Clone(takes), func(t Taken) bool { return t.From != local })
			key = r.Manifests[local].sum(own)
		}
		if key == "" {
			return ""
		}
		in.Digest = key
	}
	text, err := op.Marshal()
	if err != nil {
		return ""
	}
	return digest.FromBytes(text).Encoded()
}
