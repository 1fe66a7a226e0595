package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/api/errcode"
	v2 "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"
)

// hub is the upstream of images that name no registry.
const hub = "docker.io"

// maxManifest is distribution's own limit.
const maxManifest = 4 << 20

// mirror fetches what is asked for from upstreams, once, and keeps it in repositories of the operator's.
type mirror struct {
	upstreams map[string]*upstream // by host
	refresh   time.Duration        // after which a tag is looked up again
	ctx       context.Context      // ends what is being fetched
	stop      context.CancelCauseFunc
	running   sync.WaitGroup // fetches

	lookups singleflight.Group
	mu      sync.Mutex
	checked map[string]time.Time // tags, when they were last looked up
	fetches map[string]*fetch    // blobs on their way
}

func newMirror(ctx context.Context, upstreams []Upstream, refresh time.Duration) (*mirror, error) {
	m := &mirror{upstreams: map[string]*upstream{}, refresh: refresh, checked: map[string]time.Time{}, fetches: map[string]*fetch{}}
	for _, u := range upstreams {
		up, err := newUpstream(u)
		if err != nil {
			return nil, err
		}
		m.upstreams[u.Host] = up
	}
	m.ctx, m.stop = context.WithCancelCause(ctx)
	return m, nil
}

// namespace returns which registry's image a read is for: what containerd's resolver, BuildKit and dockerd say with
// ?ns=, and Docker Hub for a client that takes this registry for its mirror without saying so. Empty: this one's own.
func (r *Registry) namespace(req *http.Request) string {
	ns := req.URL.Query().Get("ns")
	if ns == "" && slices.Contains(r.mirrorAt, req.Host) {
		return hub
	}
	if slices.Contains(r.names, ns) {
		return ""
	}
	if host, _, err := net.SplitHostPort(ns); err == nil && slices.Contains(r.names, host) {
		return ""
	}
	return ns
}

// mirrored answers a read of another registry's image. What was preloaded wins over Docker Hub.
func (r *Registry) mirrored(w http.ResponseWriter, req *http.Request, a actor, to route, host string) {
	if !a.operator && a.scope.IsZero() {
		refuse(w, denied("%s may not read %s: only jobs may", a, to.repository))
		return
	}
	if host == hub {
		if o, ok := r.owners.of(to.repository); ok && o.Operator && r.has(req.Context(), to) {
			r.serve(w, req, to)
			return
		}
	}
	up := r.mirror.upstreams[host]
	if up == nil || to.name != v2.RouteNameManifest && to.name != v2.RouteNameBlob {
		_ = errcode.ServeJSON(w, errcode.ErrorCodeNameUnknown.WithMessage("no upstream for "+host+": registry.mirror.upstreams lists them"))
		return
	}
	local := to
	local.repository = mirrorPrefix + strings.ReplaceAll(host, ":", "__") + "/" + to.repository
	if _, err := reference.WithName(local.repository); err != nil {
		_ = errcode.ServeJSON(w, errcode.ErrorCodeNameInvalid.WithMessage(err.Error()))
		return
	}
	cache := req.Header.Get("Cache-Control") // RFC 9111, 5.2.1
	if strings.Contains(cache, "only-if-cached") {
		if !r.has(req.Context(), local) {
			refuse(w, errNobodys)
			return
		}
		r.serve(w, req, local)
		return
	}
	if to.name == v2.RouteNameBlob {
		r.mirroredBlob(w, req, up, to, local)
		return
	}
	fresh := strings.Contains(cache, "no-cache")
	if err := r.lookUp(req.Context(), up, to, local, fresh); err != nil {
		if !errors.Is(err, errNotThere) && req.Context().Err() == nil {
			r.log.to.WarnContext(req.Context(), "an image was not fetched", "component", "registry", "image", up.Host+"/"+to.repository+":"+to.reference, "error", err)
		}
		unavailable(w, errcode.ErrorCodeManifestUnknown, err)
		return
	}
	r.serve(w, req, local)
}

// unavailable answers that something is not there, or that its upstream is down: a client then asks the upstream
// itself, with its own credentials.
func unavailable(w http.ResponseWriter, code errcode.ErrorCode, err error) {
	if !errors.Is(err, errNotThere) {
		code = errcode.ErrorCodeUnavailable
	}
	_ = errcode.ServeJSON(w, code.WithMessage(err.Error()))
}

// has reports whether a repository holds a manifest or a blob, whole.
func (r *Registry) has(ctx context.Context, to route) bool {
	repository, err := r.repository(ctx, to.repository)
	if err != nil {
		return false
	}
	if to.name == v2.RouteNameBlob {
		_, err := repository.Blobs(ctx).Stat(ctx, digest.Digest(to.digest))
		return err == nil && r.intact(ctx, digest.Digest(to.digest))
	}
	d := digest.Digest(to.reference)
	if d.Validate() != nil {
		tagged, err := repository.Tags(ctx).Get(ctx, to.reference)
		if err != nil {
			return false
		}
		d = tagged.Digest
	}
	manifests, err := repository.Manifests(ctx)
	if err != nil {
		return false
	}
	ok, err := manifests.Exists(ctx, d)
	return ok && err == nil && r.intact(ctx, d)
}

func (r *Registry) repository(ctx context.Context, name string) (distribution.Repository, error) {
	named, err := reference.WithName(name)
	if err != nil {
		return nil, err
	}
	return r.store.Repository(ctx, named)
}

// lookUp makes a manifest local, if it is there and for everybody. The upstream is asked for a tag's meaning when it
// was not for a while; when it is down, what the tag meant last is served.
func (r *Registry) lookUp(ctx context.Context, up *upstream, to, local route, fresh bool) error {
	m := r.mirror
	key := local.repository + ":" + local.reference
	isTag := digest.Digest(to.reference).Validate() != nil
	m.mu.Lock()
	checked := m.checked[key]
	m.mu.Unlock()
	if (!isTag || !fresh && time.Since(checked) < m.refresh) && r.has(ctx, local) {
		return nil
	}
	done := m.lookups.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(r.log.context(m.ctx), answerTimeout+tries*maxRetryWait)
		defer cancel()
		return nil, r.fetchManifest(ctx, up, to, local, isTag)
	})
	var err error
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case result := <-done:
		err = result.Err
	}
	switch {
	case err == nil:
		m.mu.Lock()
		m.checked[key] = time.Now()
		m.mu.Unlock()
		return nil
	case errors.Is(err, errNotThere) || fresh || !r.has(ctx, local):
		return err
	}
	r.log.to.WarnContext(ctx, "an image is served as it was last known", "component", "registry", "image", up.Host+"/"+to.repository+":"+to.reference, "error", err)
	return nil
}

// fetchManifest asks the upstream for a manifest and keeps it.
func (r *Registry) fetchManifest(ctx context.Context, up *upstream, to, local route, isTag bool) error {
	repository, err := r.repository(ctx, local.repository)
	if err != nil {
		return err
	}
	tags := repository.Tags(ctx)
	want := digest.Digest(to.reference)
	if isTag {
		res, err := up.open(ctx, http.MethodHead, to.repository, "manifests/"+to.reference, 0)
		if errors.Is(err, errNotThere) { // any longer
			return errors.Join(err, ignoreUnknown(tags.Untag(ctx, to.reference)))
		} else if err != nil {
			return err
		}
		_ = res.Body.Close()
		want = digest.Digest(res.Header.Get("Docker-Content-Digest"))
		if err := want.Validate(); err != nil {
			return fmt.Errorf("%s does not say which digest %s:%s has: %w", up.URL, to.repository, to.reference, err)
		}
	}
	byDigest := local
	byDigest.reference = want.String()
	if !r.has(ctx, byDigest) {
		if err := r.storeManifest(ctx, up, to.repository, repository, want); err != nil {
			return err
		}
	}
	if !isTag {
		return nil
	}
	return tags.Tag(ctx, to.reference, imagespec.Descriptor{Digest: want})
}

// storeManifest fetches the manifest with a digest.
func (r *Registry) storeManifest(ctx context.Context, up *upstream, from string, to distribution.Repository, want digest.Digest) error {
	res, err := up.open(ctx, http.MethodGet, from, "manifests/"+want.String(), 0)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(stalling(res.Body), maxManifest+1))
	switch {
	case err != nil:
		return fmt.Errorf("fetch the manifest %s of %s/%s: %w", want, up.Host, from, err)
	case len(text) > maxManifest:
		return fmt.Errorf("the manifest %s of %s/%s is larger than %d bytes", want, up.Host, from, maxManifest)
	case want.Algorithm().FromBytes(text) != want:
		return fmt.Errorf("the manifest of %s/%s is not what its digest %s says", up.Host, from, want)
	}
	manifest, _, err := distribution.UnmarshalManifest(res.Header.Get("Content-Type"), text)
	if err != nil {
		return fmt.Errorf("read the manifest %s of %s/%s: %w", want, up.Host, from, err)
	}
	if err := r.owners.adopt(to.Named().Name()); err != nil { // only what is there makes a repository
		return err
	}
	// Its blobs come when they are asked for.
	manifests, err := to.Manifests(ctx, storage.SkipLayerVerification())
	if err != nil {
		return err
	}
	r.collecting.RLock()
	defer r.collecting.RUnlock()
	_, err = manifests.Put(ctx, manifest)
	return err
}

// ignoreUnknown makes the absence of what was to be removed no error.
func ignoreUnknown(err error) error {
	var tag distribution.ErrTagUnknown
	var name distribution.ErrRepositoryUnknown
	if errors.As(err, &tag) || errors.As(err, &name) || isPathNotFound(err) {
		return nil
	}
	return err
}
