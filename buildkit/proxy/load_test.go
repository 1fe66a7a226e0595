package proxy

import (
	"context"
	"errors"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	loadRepository = "registry:5000/cache/id/load"
	loadedDigest   = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

// dockerd stands for an engine: it notes what it is to load.
type dockerd struct {
	unreachable, broken error
	hangs               bool
	began               chan struct{} // closed when it hangs

	loaded []digest.Digest
	names  []string
}

func (d *dockerd) Repository(context.Context) (string, error) { return loadRepository, d.unreachable }

func (d *dockerd) Load(ctx context.Context, repository string, image digest.Digest, names []string) error {
	if repository != loadRepository {
		return errors.New("another repository: " + repository)
	}
	if d.hangs {
		close(d.began)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	d.loaded, d.names = append(d.loaded, image), names
	return d.broken
}

func exporter(kind string, attrs ...string) *control.Exporter {
	e := &control.Exporter{Type: kind, Attrs: map[string]string{}}
	for i := 0; i < len(attrs); i += 2 {
		e.Attrs[attrs[i]] = attrs[i+1]
	}
	return e
}

// TestLoad has the exports of buildx, and some that a job might make up.
func TestLoad(t *testing.T) {
	ours := "linux/" + runtime.GOARCH
	for name, x := range map[string]struct {
		exporters   []*control.Exporter
		frontend    map[string]string
		unreachable error
		diverted    bool
		names       []string
	}{
		"load":                        {exporters: []*control.Exporter{exporter("oci", loadMark, "true", "name", "docker.io/library/it")}, diverted: true, names: []string{"docker.io/library/it:latest"}},
		"two names":                   {exporters: []*control.Exporter{exporter("oci", loadMark, "true", "name", "a:1,host:1/b:2")}, diverted: true, names: []string{"docker.io/library/a:1", "host:1/b:2"}},
		"no name":                     {exporters: []*control.Exporter{exporter("oci", loadMark, "true")}, diverted: true},
		"and a directory":             {exporters: []*control.Exporter{exporter("local"), exporter("oci", loadMark, "true")}, diverted: true},
		"options":                     {exporters: []*control.Exporter{exporter("oci", loadMark, "true", "compression", "zstd", "annotation.a", "b")}, diverted: true},
		"provenance of its own":       {exporters: []*control.Exporter{exporter("oci", loadMark, "true")}, frontend: map[string]string{"attest:provenance": "mode=min,inline-only=true", "platform": ours}, diverted: true},
		"attestation":                 {exporters: []*control.Exporter{exporter("oci", loadMark, "true")}, frontend: map[string]string{"attest:provenance": "mode=max"}},
		"platforms":                   {exporters: []*control.Exporter{exporter("oci", loadMark, "true")}, frontend: map[string]string{"platform": ours + ",linux/s390x"}},
		"foreign platform":            {exporters: []*control.Exporter{exporter("oci", loadMark, "true")}, frontend: map[string]string{"platform": "linux/s390x"}},
		"file":                        {exporters: []*control.Exporter{exporter("docker", "name", "it")}},
		"OCI file":                    {exporters: []*control.Exporter{exporter("oci", "name", "it")}},
		"push":                        {exporters: []*control.Exporter{exporter("image", "push", "true", "name", "host/it")}},
		"push that calls itself load": {exporters: []*control.Exporter{exporter("image", "push", "true", "name", "host/it", loadMark, "true")}},
		"load and push":               {exporters: []*control.Exporter{exporter("oci", loadMark, "true"), exporter("image", "push", "true", "name", "host/it")}},
		"another engine":              {exporters: []*control.Exporter{exporter("oci", loadMark, "true", "context", "other")}},
		"an option of pushes":         {exporters: []*control.Exporter{exporter("oci", loadMark, "true", "push", "true", "registry.insecure", "true")}},
		"bad name":                    {exporters: []*control.Exporter{exporter("oci", loadMark, "true", "name", "A B")}},
		"name with a digest":          {exporters: []*control.Exporter{exporter("oci", loadMark, "true", "name", "a@"+loadedDigest)}},
		"no registry":                 {exporters: []*control.Exporter{exporter("oci", loadMark, "true")}, unreachable: errors.New("refused")},
	} {
		t.Run(name, func(t *testing.T) {
			b, d := newBuildkitd(t), &dockerd{unreachable: x.unreachable}
			b.built = map[string]string{"containerimage.digest": loadedDigest, "image.name": loadRepository, "other": "kept"}
			_, c := serve(t, Config{Lease: b.lease, Engine: d})
			asked := control.SolveRequest{Ref: "r", Exporters: x.exporters, FrontendAttrs: x.frontend}
			answer, err := control.NewControlClient(c).Solve(t.Context(), &asked)
			if err != nil {
				t.Fatal(err)
			}
			if !x.diverted {
				for i, e := range b.solve.Exporters {
					if e.Type != x.exporters[i].Type || !maps.Equal(e.Attrs, x.exporters[i].Attrs) {
						t.Errorf("the worker got %v, want %v", e, x.exporters[i])
					}
				}
				if len(d.loaded) != 0 || answer.ExporterResponse["image.name"] != loadRepository {
					t.Errorf("loaded %q, answered %v", d.loaded, answer)
				}
				return
			}
			for i, e := range b.solve.Exporters {
				if !loads(x.exporters[i]) {
					continue
				}
				want := map[string]string{"name": loadRepository, "push": "true", "push-by-digest": "true", "registry.insecure": "true", "attestation-inline": "false"}
				for key, value := range x.exporters[i].Attrs {
					if key != "name" && key != loadMark {
						want[key] = value
					}
				}
				if e.Type != "image" || !maps.Equal(e.Attrs, want) {
					t.Errorf("the worker got %s %v, want an image, %v", e.Type, e.Attrs, want)
				}
			}
			if !slices.Equal(d.loaded, []digest.Digest{loadedDigest}) || !slices.Equal(d.names, x.names) {
				t.Errorf("loaded %q as %q, want %q", d.loaded, d.names, x.names)
			}
			if r := answer.ExporterResponse; r["image.name"] == loadRepository || len(x.names) == 0 && r["image.name"] != "" || r["containerimage.digest"] != loadedDigest || r["other"] != "kept" {
				t.Errorf("answered %v", r)
			}
		})
	}
}

// TestLoadFails has an engine that cannot load, and a client that goes away while it does.
func TestLoadFails(t *testing.T) {
	b := newBuildkitd(t)
	b.built = map[string]string{"containerimage.digest": loadedDigest}
	request := func(ref string) *control.SolveRequest {
		return &control.SolveRequest{Ref: ref, Exporters: []*control.Exporter{exporter("oci", loadMark, "true")}}
	}
	_, c := serve(t, Config{Lease: b.lease, Engine: &dockerd{broken: errors.New("no space left")}})
	if _, err := control.NewControlClient(c).Solve(t.Context(), request("r")); status.Code(err) != codes.FailedPrecondition {
		t.Error(err)
	}
	d := &dockerd{hangs: true, began: make(chan struct{})}
	p, c := serve(t, Config{Lease: b.lease, Engine: d})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go func() {
		<-d.began
		cancel()
	}()
	if _, err := control.NewControlClient(c).Solve(ctx, request("s")); status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	if err := p.Close(t.Context()); err != nil { // it waits for all calls to end
		t.Error(err)
	}
	b.built = nil
	d = &dockerd{}
	_, c = serve(t, Config{Lease: b.lease, Engine: d})
	if _, err := control.NewControlClient(c).Solve(t.Context(), request("t")); status.Code(err) != codes.Internal || len(d.loaded) != 0 {
		t.Errorf("an answer without a digest: %v, loaded %q", err, d.loaded)
	}
}

// TestOtherEngine has clients that were told to load into another engine than the sandbox's.
func TestOtherEngine(t *testing.T) {
	for text, want := range map[string]bool{
		"PATH=/bin\nHOME=/": false, "DOCKER_HOST=": false, "DOCKER_HOST=unix:///var/run/docker.sock": false, "DOCKER_CONTEXT=default": false,
		"DOCKER_HOST=tcp://docker:2375": false, "DOCKER_HOST=tcp://docker:2375/": false,
		"A=b\nDOCKER_HOST=tcp://inner:2375": true, "DOCKER_CONTEXT=inner": true,
	} {
		if got := namesEngine(strings.Split(text, "\n"), []string{"tcp://docker:2375"}); got != want {
			t.Errorf("the environment %q: %v", text, got)
		}
	}
	for text, want := range map[string]bool{
		"docker-buildx buildx build -c x .": false, "docker-buildx": false, "docker-buildx --debug buildx bake": false,
		"docker-buildx -H tcp://inner buildx build .": true, "docker-buildx -Htcp://inner buildx build": true,
		"docker-buildx --context=inner buildx build .": true, "docker-buildx -c inner buildx build .": true,
	} {
		if got := flagsEngine(strings.Fields(text)); got != want {
			t.Errorf("the arguments %q: %v", text, got)
		}
	}
}

const asClient = "RUNNERD_TEST_SOLVE_AT"

// TestOtherEngineIsLeftAlone solves from processes with an environment of their own.
func TestOtherEngineIsLeftAlone(t *testing.T) {
	request := &control.SolveRequest{Ref: "r", Exporters: []*control.Exporter{exporter("oci", loadMark, "true")}}
	if socket := os.Getenv(asClient); socket != "" {
		if _, err := control.NewControlClient(dial(t, socket)).Solve(t.Context(), request); err != nil {
			t.Fatal(err)
		}
		return
	}
	for host, want := range map[string]int{"unix:///var/run/docker.sock": 1, "tcp://inner:2375": 0} {
		b, d := newBuildkitd(t), &dockerd{}
		b.built = map[string]string{"containerimage.digest": loadedDigest}
		_, c := serve(t, Config{Lease: b.lease, Engine: d})
		cmd := exec.Command(os.Args[0], "-test.run", "^TestOtherEngineIsLeftAlone$")
		cmd.Env = []string{asClient + "=" + strings.TrimPrefix(c.Target(), "unix://"), "DOCKER_HOST=" + host}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if len(d.loaded) != want {
			t.Errorf("%s: loaded %q", host, d.loaded)
		}
	}
}
