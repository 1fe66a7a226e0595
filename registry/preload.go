package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
)

// host stands in URLs for this registry, which is asked in process; the port tells the client that it is a
// plain HTTP one.
const host = "localhost:5000"

// Preload puts every image of the OCI layout in dir into the registry, under the name in its annotation
// org.opencontainers.image.ref.name: "debian:bookworm-slim" becomes the tag bookworm-slim of
// library/debian, as a client that takes the registry for a mirror of Docker Hub asks for it. An image that
// is there already costs a few requests; a tag that means another image is moved. A digest
// that does not fit is an error, and so is an image without a name; the others are still put in.
func (r *Registry) Preload(ctx context.Context, dir string) error {
	p, err := layout.FromPath(dir)
	if err != nil {
		return fmt.Errorf("preload images from %s: %w: run \"make images\"", dir, err)
	}
	index, err := p.ImageIndex()
	if err != nil {
		return fmt.Errorf("preload images from %s: %w", dir, err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		return fmt.Errorf("preload images from %s: %w", dir, err)
	}
	r.layouts.add(dir)
	l := loader{registry: r, from: p, client: remote.WithTransport(inProcess{r.Handler()})}
	failed := make([]error, len(m.Manifests))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, d := range m.Manifests {
		g.Go(func() error {
			if err := l.load(ctx, index, d); err != nil {
				failed[i] = fmt.Errorf("preload %s from %s: %w", d.Annotations[imagespec.AnnotationRefName], dir, err)
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are in failed
	return errors.Join(failed...)
}

// layouts are the directories of what was preloaded.
type layouts struct {
	mu      sync.Mutex
	dirs    []string
	damaged bool // something was found to be corrupted since they were loaded

	copying singleflight.Group // of blobs, by digest: images share layers
}

func (l *layouts) add(dir string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.dirs, dir) {
		l.dirs = append(l.dirs, dir)
	}
}

// reload puts what was preloaded into the registry again, if something of the operator's was found to be corrupted.
func (r *Registry) reload(ctx context.Context, repository string) {
	l := &r.layouts
	l.mu.Lock()
	damaged, dirs := l.damaged, slices.Clone(l.dirs)
	if o, ok := r.owners.of(repository); !damaged || !ok || !o.Operator {
		l.mu.Unlock()
		return
	}
	l.damaged = false
	l.mu.Unlock()
	for _, dir := range dirs {
		if err := r.Preload(ctx, dir); err != nil {
			r.log.to.ErrorContext(ctx, "images were not loaded again", "component", "registry", "error", err)
		}
	}
}

type loader struct {
	registry *Registry
	from     layout.Path
	client   remote.Option
}

func (l loader) load(ctx context.Context, index v1.ImageIndex, d v1.Descriptor) error {
	repository, tag, err := place(d.Annotations[imagespec.AnnotationRefName])
	if err != nil {
		return err
	}
	if err := l.registry.owners.adopt(repository); err != nil {
		return err
	}
	to, err := name.NewTag(host+"/"+repository+":"+tag, name.StrictValidation)
	if err != nil {
		return err
	}
	if err := l.stock(ctx, repository, index, d); err != nil {
		return err
	}
	if l.has(ctx, repository, "manifests/"+tag, d) {
		return nil
	}
	if d.MediaType.IsIndex() {
		child, err := index.ImageIndex(d.Digest)
		if err != nil {
			return err
		}
		return remote.WriteIndex(to, child, l.client, remote.WithContext(ctx))
	}
	img, err := index.Image(d.Digest)
	if err != nil {
		return err
	}
	return remote.Write(to, img, l.client, remote.WithContext(ctx))
}

// place is where an image called ref goes.
func place(ref string) (repository, tag string, err error) {
	if ref == "" {
		return "", "", errors.New("the image has no name (annotation " + imagespec.AnnotationRefName + ")")
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", "", err
	}
	if _, ok := named.(reference.Digested); ok {
		return "", "", fmt.Errorf("%s names a digest, want a tag", ref)
	}
	tagged, ok := reference.TagNameOnly(named).(reference.Tagged)
	if !ok {
		return "", "", fmt.Errorf("%s has no tag", ref)
	}
	return reference.Path(named), tagged.Tag(), nil
}

// has reports whether the registry has what, with d's digest and size.
func (l loader) has(ctx context.Context, repository, what string, d v1.Descriptor) bool {
	res, err := l.ask(ctx, http.MethodHead, repository, what, string(d.MediaType))
	return err == nil && res.StatusCode == http.StatusOK &&
		res.Header.Get("Docker-Content-Digest") == d.Digest.String() && res.ContentLength == d.Size
}

func (l loader) ask(ctx context.Context, method, repository, what, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+host+"/v2/"+repository+"/"+what, nil)
	if err != nil {
		return nil, err
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	return inProcess{l.registry.Handler()}.RoundTrip(req)
}

func contentLength(h http.Header) int64 {
	n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64)
	if err != nil {
		return -1
	}
	return n
}
