package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	v2 "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/distribution/reference"
	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"
)

// maxCatalog is how many repositories one answer lists.
const maxCatalog = 1000

// route is what a request is about.
type route struct {
	name       string // as v2.RouteName…
	repository string
	reference  string // of a manifest: a tag or a digest
	digest     string // of a blob
}

// routeOf reads a request's path with the routes that distribution has for it, so that both understand the same.
func routeOf(req *http.Request) (route, bool) {
	var m mux.RouteMatch
	if !v2.Router().Match(req, &m) || m.Route == nil {
		return route{}, false
	}
	return route{m.Route.GetName(), m.Vars["name"], m.Vars["reference"], m.Vars["digest"]}, true
}

// guard lets through to distribution what whoever asks may do.
func (r *Registry) guard(w http.ResponseWriter, req *http.Request) {
	a, err := r.actor(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	to, ok := routeOf(req)
	switch {
	case !ok:
		http.NotFound(w, req)
	case to.name == v2.RouteNameBase:
		r.app.ServeHTTP(w, req)
	case to.name == v2.RouteNameCatalog:
		r.catalog(w, req, a)
	case reads(req.Method) && r.namespace(req) != "":
		r.mirrored(w, req, a, to, r.namespace(req))
	case reads(req.Method) && to.name != v2.RouteNameBlobUpload && to.name != v2.RouteNameBlobUploadChunk:
		if err := r.mayRead(a, to.repository); err != nil {
			refuse(w, err)
			return
		}
		r.read(w, req, to)
	default:
		r.write(w, req, a, to)
	}
}

func reads(method string) bool { return method == http.MethodGet || method == http.MethodHead }

// read answers a read of what a repository holds.
func (r *Registry) read(w http.ResponseWriter, req *http.Request, to route) {
	if to.name == v2.RouteNameBlob || to.name == v2.RouteNameManifest {
		r.lease(digest.Digest(to.digest))
		if !r.has(req.Context(), to) {
			r.reload(req.Context(), to.repository)
		}
	}
	r.serve(w, req, to)
}

// serve lets distribution answer a read as if it had been for to.
func (r *Registry) serve(w http.ResponseWriter, req *http.Request, to route) {
	in := req.Clone(req.Context())
	switch to.name {
	case v2.RouteNameBlob:
		in.URL.Path = "/v2/" + to.repository + "/blobs/" + to.digest
	case v2.RouteNameManifest:
		in.URL.Path = "/v2/" + to.repository + "/manifests/" + to.reference
	}
	in.URL.RawPath = ""
	r.app.ServeHTTP(w, in)
	if d := digest.Digest(w.Header().Get("Docker-Content-Digest")); to.name == v2.RouteNameManifest && d.Validate() == nil {
		r.uses.add(entryID(to.repository, d))
	}
}

// write lets a write through, and makes a repository the writer's that was nobody's.
func (r *Registry) write(w http.ResponseWriter, req *http.Request, a actor, to route) {
	err := mayClaim(a, to.repository)
	if _, invalid := reference.WithName(to.repository); invalid != nil {
		err = denied("%v", invalid)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	// A takeover does not wait for a client that sends nothing.
	interrupt := func() { _ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) }
	ctx, end, err := r.owners.write(req.Context(), a, to.repository, interrupt)
	if err != nil {
		refuse(w, err)
		return
	}
	defer end()
	req = req.WithContext(ctx)
	switch to.name {
	case v2.RouteNameBlobUpload:
		r.checkMount(req, a)
		r.lease(digest.Digest(req.URL.Query().Get("mount")))
	case v2.RouteNameBlobUploadChunk:
		r.lease(digest.Digest(req.URL.Query().Get("digest")))
	case v2.RouteNameManifest:
		text, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxManifest)) // nobody waits for a slow client below
		if err != nil {
			_ = errcode.ServeJSON(w, errcode.ErrorCodeManifestInvalid.WithMessage(err.Error()))
			return
		}
		req.Body = io.NopCloser(bytes.NewReader(text))
		r.collecting.RLock()
		defer r.collecting.RUnlock()
		if ctx.Err() != nil {
			refuse(w, context.Cause(ctx))
			return
		}
	}
	r.app.ServeHTTP(w, req)
}

// checkMount takes out of the beginning of an upload that it copies a blob from a repository which may not be read:
// the client then sends the blob, as the distribution specification has it ("Mounting a blob from another
// repository").
func (r *Registry) checkMount(req *http.Request, a actor) {
	req.Header.Set("Content-Type", "application/octet-stream") // distribution would read a form's fields, too
	query := req.URL.Query()
	if from := query.Get("from"); from != "" && r.mayRead(a, from) != nil {
		query.Del("mount")
		query.Del("from")
	}
	req.URL.RawQuery = query.Encode()
}

// catalog lists the repositories that may be read.
func (r *Registry) catalog(w http.ResponseWriter, req *http.Request, a actor) {
	query := req.URL.Query()
	n := maxCatalog
	if text := query.Get("n"); text != "" {
		asked, err := strconv.Atoi(text)
		if err != nil || asked < 1 {
			http.Error(w, "n is not a number of repositories", http.StatusBadRequest)
			return
		}
		n = min(n, asked)
	}
	names := []string{}
	for _, o := range r.owners.list() {
		if o.Repository <= query.Get("last") || r.mayRead(a, o.Repository) != nil {
			continue
		}
		if len(names) == n {
			more := url.Values{"last": {names[n-1]}, "n": {strconv.Itoa(n)}}
			w.Header().Set("Link", fmt.Sprintf(`</v2/_catalog?%s>; rel="next"`, more.Encode()))
			break
		}
		names = append(names, o.Repository)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string][]string{"repositories": names})
}

// repositoryDir is where distribution keeps a repository, beside those whose names begin with its own.
func (r *Registry) repositoryDir(repository string) string {
	return filepath.Join(storageDir(r.root, "repositories"), filepath.FromSlash(repository))
}

// storageDir is where distribution keeps "repositories" or "blobs".
func storageDir(root, what string) string {
	return filepath.Join(root, "docker", "registry", "v2", what)
}

// empty drops all that a repository holds. Its blobs are collected as garbage.
func (r *Registry) empty(repository string) error {
	for _, part := range []string{"_manifests", "_layers", "_uploads"} {
		if err := os.RemoveAll(filepath.Join(r.repositoryDir(repository), part)); err != nil {
			return fmt.Errorf("empty %s: %w", repository, err)
		}
	}
	return nil
}
