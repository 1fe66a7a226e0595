package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"github.com/moby/buildkit/client"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
)

// resolver makes requests ready to run.
type resolver struct {
	attachments *api.Attachments
	insecure    string // the registry that speaks plain HTTP
	cancel      func(ctx context.Context, id, reason string) error
}

func (r *resolver) resolve(ctx context.Context, req runner.Request) (runner.Job, error) {
	job := runner.Job{Request: req}
	switch req.Kind {
	case api.KindScript:
		step := &script{job: req, secrets: queue.SubmittedSecrets(ctx), resolver: r}
		if err := json.Unmarshal(req.Payload, &step.Script); err != nil {
			return job, fmt.Errorf("read the script of job %s: %w", req.ID, err)
		}
		job.Steps = []runner.Step{step}
	case api.KindBuild:
		step := &build{insecure: r.insecure}
		if err := json.Unmarshal(req.Payload, &step.payload); err != nil {
			return job, fmt.Errorf("read the build of job %s: %w", req.ID, err)
		}
		values := queue.SubmittedSecrets(ctx)
		if len(values) != len(step.payload.SecretIDs) {
			return job, errors.New("the build's secrets were lost when runnerd was restarted: start it again")
		}
		step.secrets = map[string][]byte{}
		for i, id := range step.payload.SecretIDs {
			step.secrets[id] = []byte(values[i])
		}
		job.Steps = []runner.Step{step}
	default:
		return job, fmt.Errorf("job %s: unknown kind %q", req.ID, req.Kind)
	}
	return job, nil
}

// script is a step that runs one command.
type script struct {
	api.Script
	job      runner.Request
	secrets  []string
	resolver *resolver
}

func (s *script) Name() string { return s.Command[0] }

func (s *script) Run(ctx context.Context, on sandbox.Host, out runner.Output) (sandbox.Exit, error) {
	p := sandbox.Process{
		Args: s.Command, Dir: s.Dir, User: s.User,
		Stdout: out.Stream(runner.Stdout), Stderr: out.Stream(runner.Stderr),
	}
	if !s.job.Attach {
		return on.Exec(ctx, p)
	}
	session, err := s.resolver.attachments.Session(ctx, s.job.ID)
	if err != nil {
		return sandbox.Exit{}, err
	}
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-session.Gone():
			_ = s.resolver.cancel(context.WithoutCancel(ctx), s.job.ID, "its client went away")
		case <-over:
		}
	}()
	// What the client sees is masked as the log is, each stream by a writer of its own.
	mask := runner.NewMask(s.secrets)
	toClient := func(stream runner.Stream, log io.Writer) (io.Writer, func() error) {
		masked := mask.Writer(session.Stream(ctx, stream))
		return io.MultiWriter(log, masked), masked.Close
	}
	var closeOut, closeErr func() error
	p.Stdout, closeOut = toClient(runner.Stdout, p.Stdout)
	p.Stderr, closeErr = toClient(runner.Stderr, p.Stderr)
	defer closeOut()
	defer closeErr()
	p.Signals = session.Signals
	if s.Stdin {
		stdin := session.Stdin()
		defer stdin.Close()
		p.Stdin = stdin
	}
	if s.TTY {
		p.Terminal = &sandbox.Terminal{Size: sandbox.WindowSize{Rows: s.Rows, Cols: s.Cols}, Resize: session.Resize}
	}
	return on.Exec(ctx, p)
}

// buildPayload is what the queue keeps of a build.
type buildPayload struct {
	Dir       string        `json:"dir"`
	Plan      buildkit.Plan `json:"plan"`
	Target    string        `json:"target"`
	Push      bool          `json:"push,omitempty"`
	SecretIDs []string      `json:"secret_ids,omitempty"` // in the order of the secrets submitted
}

// build is a step that builds one target in its project's worker.
type build struct {
	payload  buildPayload
	secrets  map[string][]byte
	insecure string
	result   *buildkit.Result
}

func (b *build) Name() string { return "build " + b.payload.Target }

func (b *build) Run(ctx context.Context, on sandbox.Host, out runner.Output) (sandbox.Exit, error) {
	lease, ok := on.(*buildkit.Lease)
	if !ok {
		return sandbox.Exit{}, fmt.Errorf("a build needs a builder, not %T", on)
	}
	progress := out.Stream(runner.Progress)
	result, err := buildkit.Build{
		Dir: b.payload.Dir, Plan: b.payload.Plan, Target: b.payload.Target, Push: b.payload.Push, Secrets: b.secrets,
		Insecure: func(host string) bool { return host == b.insecure },
	}.Run(ctx, lease.Client, func(s *client.SolveStatus) {
		if text, err := json.Marshal(s); err == nil {
			_, _ = progress.Write(text) // a log that cannot be written does not fail the build
		}
	})
	b.result = &result
	var step *buildkit.StepError
	if errors.As(err, &step) {
		fmt.Fprintf(out.Stream(runner.Stderr), "%s\n", step)
		return sandbox.Exit{Code: max(1, step.Code)}, nil
	}
	return sandbox.Exit{}, err
}

// Detail is the build's result, as JSON.
func (b *build) Detail() json.RawMessage {
	if b.result == nil {
		return nil
	}
	text, err := json.Marshal(b.result)
	if err != nil {
		return nil
	}
	return text
}

// buildLimits is what one build holds of the machine's capacity while it runs: little, since its work is
// done in its project's worker, which has limits of its own.
var buildLimits = sandbox.Limits{CPU: 100, Memory: 128 << 20}

// planner reads build files for the API.
type planner struct {
	frontends []string
	registry  string
}

func (p planner) Plan(ctx context.Context, dir string, b api.Build) ([]api.Target, error) {
	plan, err := buildkit.Read(ctx, buildkit.Input{Dir: dir, Files: b.Files, Targets: b.Targets, Set: b.Set, Vars: b.Vars, Frontends: p.frontends})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	if err := p.override(&plan, b); err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	limits := b.Limits
	if limits.CPU == 0 {
		limits.CPU = buildLimits.CPU
	}
	if limits.Memory == 0 {
		limits.Memory = buildLimits.Memory
	}
	var targets []api.Target
	for _, name := range plan.Build {
		closure := plan.Closure(name)
		payload := buildPayload{Dir: dir, Plan: closure, Target: name, Push: b.Push, SecretIDs: closure.SecretIDs()}
		var values []string
		for _, id := range payload.SecretIDs {
			value, ok := b.Secrets[id]
			if !ok {
				return nil, fmt.Errorf("%w: target %s: secret %q has no value: give it with --secret id=%s,src=FILE or env=NAME", api.ErrInvalid, name, id, id)
			}
			values = append(values, string(value))
		}
		text, err := json.Marshal(payload)
		if err != nil {
			return nil, err
		}
		targets = append(targets, api.Target{
			Request: runner.Request{Name: name, Nesting: sandbox.Nesting{sandbox.Container, sandbox.BuildKit}, Limits: limits, Payload: text},
			Secrets: values,
		})
	}
	return targets, nil
}

// override applies the command line's flags to the targets that were asked for.
func (p planner) override(plan *buildkit.Plan, b api.Build) error {
	if len(b.Tags) > 0 && len(plan.Build) > 1 {
		return fmt.Errorf("-t names one image, and there are %d targets: name one, or use --set TARGET.tags=…", len(plan.Build))
	}
	outputs, err := parseOptions("--output", b.Outputs)
	if err != nil {
		return err
	}
	cacheFrom, err := parseOptions("--cache-from", b.CacheFrom)
	if err != nil {
		return err
	}
	cacheTo, err := parseOptions("--cache-to", b.CacheTo)
	if err != nil {
		return err
	}
	for _, name := range plan.Build {
		t := plan.Targets[name]
		if len(b.Tags) > 0 {
			t.Tags = b.Tags
		}
		t.Args = merged(t.Args, b.BuildArgs)
		t.Labels = merged(t.Labels, b.Labels)
		t.Annotations = append(t.Annotations, b.Annotations...)
		if len(b.Platforms) > 0 {
			t.Platforms = b.Platforms
		}
		t.NoCache, t.Pull = t.NoCache || b.NoCache, t.Pull || b.Pull
		t.Outputs = append(t.Outputs, outputs...)
		t.CacheFrom, t.CacheTo = append(t.CacheFrom, cacheFrom...), append(t.CacheTo, cacheTo...)
		for _, o := range t.Outputs {
			switch o.Type {
			case "registry", "image", "cacheonly":
			default:
				return fmt.Errorf("target %s: output type %q cannot be fetched from the daemon yet: use --push", name, o.Type)
			}
		}
		for i, tag := range t.Tags { // the registry is known by its name in sandboxes, whatever its port
			if rest, ok := strings.CutPrefix(tag, RegistryHost+"/"); ok {
				t.Tags[i] = p.registry + "/" + rest
			}
		}
		plan.Targets[name] = t
	}
	return nil
}

// parseOptions reads "type=registry,ref=…", or a bare reference as the registry it means.
func parseOptions(flag string, texts []string) ([]buildkit.Option, error) {
	var all []buildkit.Option
	for _, text := range texts {
		if !strings.Contains(text, "=") {
			all = append(all, buildkit.Option{Type: "registry", Attrs: map[string]string{"ref": text}})
			continue
		}
		o := buildkit.Option{Attrs: map[string]string{}}
		for field := range strings.SplitSeq(text, ",") {
			key, value, ok := strings.Cut(field, "=")
			if !ok {
				return nil, fmt.Errorf("%s %q: %q is not key=value", flag, text, field)
			}
			if key == "type" {
				o.Type = value
			} else {
				o.Attrs[key] = value
			}
		}
		if o.Type == "" {
			return nil, fmt.Errorf("%s %q: type=… is missing", flag, text)
		}
		all = append(all, o)
	}
	return all, nil
}

func merged(a, b map[string]string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, a)
	maps.Copy(out, b)
	return out
}
