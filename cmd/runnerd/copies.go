package main

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/runnerd/runnerd/ledger"
	"github.com/runnerd/runnerd/registry"
	"github.com/runnerd/runnerd/sandbox"
)

// copies count what goes into the sandboxes of jobs, and out of them, once more: images from the registry, caches. What
// comes to a sandbox from elsewhere than this machine is not seen.
type copies struct {
	mu        sync.Mutex
	jobs      map[string]*jobCopies // by the job's id
	sandboxes map[string]*jobCopies // by its sandbox's
}

// maxImages bounds how many images of a job are told apart: their names are the job's choice.
const maxImages = 100

// jobCopies are one job's.
type jobCopies struct {
	mu     sync.Mutex
	bytes  map[sandbox.CopyWay]int64
	images []*pulled
}

// pulled is an image that is being pulled, or was.
type pulled struct {
	sandbox.PulledImage
	repository string
	requests   int // that are being answered
	since      time.Time
}

// job returns a job's, which begin to be counted.
func (c *copies) job(job, in string) *jobCopies {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.jobs == nil {
		c.jobs, c.sandboxes = map[string]*jobCopies{}, map[string]*jobCopies{}
	}
	j := &jobCopies{bytes: map[sandbox.CopyWay]int64{}}
	c.jobs[job], c.sandboxes[in] = j, j
	return j
}

func (c *copies) forget(job, in string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.jobs, job)
	delete(c.sandboxes, in)
}

// Copied notes bytes of a job's.
func (c *copies) Copied(job string, way sandbox.CopyWay, bytes int64) {
	c.mu.Lock()
	j := c.jobs[job]
	c.mu.Unlock()
	if j != nil {
		j.add(way, bytes)
	}
}

func (j *jobCopies) add(way sandbox.CopyWay, bytes int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.bytes[way] += bytes
}

// usesAndCopies are what keptCaches tell.
type usesAndCopies struct {
	*ledger.Ledger
	*copies
}

// counting counts what a registry's handler sends to the sandboxes of jobs. at is the sandbox that has an address.
func (c *copies) counting(h http.Handler, at func(netip.Addr) (id string, ok bool)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		j := c.asking(req, at)
		repository, what, ref := registryPath(req.URL.Path)
		if j == nil || what == "" || req.Method != http.MethodGet && req.Method != http.MethodHead {
			h.ServeHTTP(w, req)
			return
		}
		if host := req.URL.Query().Get("ns"); host != "" && host != "docker.io" {
			repository = host + "/" + repository
		}
		repository = strings.TrimPrefix(repository, "library/")
		counted := &countedResponse{ResponseWriter: w}
		image := j.begin(repository, what, ref)
		defer func() { j.end(image, repository, counted.bytes) }()
		h.ServeHTTP(counted, req)
	})
}

func (c *copies) asking(req *http.Request, at func(netip.Addr) (string, bool)) *jobCopies {
	from, err := netip.ParseAddrPort(req.RemoteAddr)
	if err != nil {
		return nil
	}
	id, ok := at(from.Addr().Unmap())
	if !ok {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sandboxes[id]
}

// registryPath reads /v2/REPOSITORY/manifests/REF and /v2/REPOSITORY/blobs/DIGEST (OCI distribution-spec, "Endpoints").
func registryPath(path string) (repository, what, ref string) {
	parts := strings.Split(strings.TrimPrefix(path, "/v2/"), "/")
	n := len(parts)
	if !strings.HasPrefix(path, "/v2/") || n < 3 || parts[n-2] != "manifests" && parts[n-2] != "blobs" {
		return "", "", ""
	}
	return strings.Join(parts[:n-2], "/"), parts[n-2], parts[n-1]
}

// begin notes a request. It returns the image that it is for, nil if there are too many. A pull asks once for what a
// name means; what it asks for by digests afterwards is for the image of that repository that it named last.
func (j *jobCopies) begin(repository, what, ref string) *pulled {
	j.mu.Lock()
	defer j.mu.Unlock()
	named := what == "manifests" && !strings.Contains(ref, ":")
	name := repository
	if named {
		name += ":" + ref
	}
	i := slices.IndexFunc(j.images, func(p *pulled) bool {
		return p.Image == name || !named && p.repository == repository
	})
	if i < 0 && len(j.images) >= maxImages {
		return nil
	}
	if i < 0 {
		p := &pulled{PulledImage: sandbox.PulledImage{Image: name}, repository: repository}
		if !named {
			p.Image, p.Times = repository+"@"+ref, 1
		}
		j.images, i = append(j.images, p), len(j.images)
	}
	p := j.images[i]
	j.images = slices.Insert(slices.Delete(j.images, i, i+1), 0, p) // the one that was named last is found first
	if named {
		p.Times++
	}
	if p.requests++; p.requests == 1 {
		p.since = time.Now()
	}
	return p
}

// end notes what was answered.
func (j *jobCopies) end(p *pulled, repository string, bytes int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if registry.IsCache(repository) {
		j.bytes[sandbox.CopyLoad] += bytes
	} else {
		j.bytes[sandbox.CopyPull] += bytes
	}
	if p == nil {
		return
	}
	p.Bytes += bytes
	if p.requests--; p.requests == 0 {
		p.Took += time.Since(p.since)
	}
}

// addTo adds what is known so far to a job's usage.
func (j *jobCopies) addTo(u *sandbox.Usage) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, way := range []sandbox.CopyWay{sandbox.CopyPull, sandbox.CopyLoad, sandbox.CopyRestore, sandbox.CopySave} {
		u.AddCopied(way, j.bytes[way])
	}
	if u.Engine == nil {
		return
	}
	for _, p := range j.images {
		if !registry.IsCache(p.repository) && p.Bytes > 0 {
			u.Engine.Images = append(u.Engine.Images, p.PulledImage)
		}
	}
}

// countedSandbox is a job's sandbox that tells what was copied.
type countedSandbox struct {
	sandbox.Sandbox
	copies *copies
	counts *jobCopies
	job    string
}

func (c *copies) count(sb sandbox.Sandbox, job string) sandbox.Sandbox {
	return countedSandbox{sb, c, c.job(job, sb.ID()), job}
}

// Unwrap returns the sandbox, for its further abilities.
func (s countedSandbox) Unwrap() sandbox.Sandbox { return s.Sandbox }

// Usage is the sandbox's, with what was copied.
func (s countedSandbox) Usage(ctx context.Context) (sandbox.Usage, error) {
	u, err := s.Sandbox.Usage(ctx)
	s.counts.addTo(&u)
	return u, err
}

// Close ends the counting, too.
func (s countedSandbox) Close(ctx context.Context) error {
	defer s.copies.forget(s.job, s.ID())
	return s.Sandbox.Close(ctx)
}

// countedResponse counts a body.
type countedResponse struct {
	http.ResponseWriter
	bytes int64
}

func (r *countedResponse) Write(p []byte) (int, error) {
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

// ReadFrom lets the kernel send files.
func (r *countedResponse) ReadFrom(from io.Reader) (int64, error) {
	n, err := io.Copy(r.ResponseWriter, from)
	r.bytes += n
	return n, err
}

// Flush sends what there is.
func (r *countedResponse) Flush() { _ = http.NewResponseController(r.ResponseWriter).Flush() }

// Unwrap returns what it wraps, for http.ResponseController.
func (r *countedResponse) Unwrap() http.ResponseWriter { return r.ResponseWriter }
