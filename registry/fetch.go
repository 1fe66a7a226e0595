package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fetch is a blob on its way from an upstream into the store. Whoever wants it meanwhile reads the file that it grows
// in.
type fetch struct {
	mu      sync.Mutex
	changed *sync.Cond
	file    string // where the bytes are; empty: none have come yet
	size    int64  // -1: not known
	written int64
	done    bool // and in the store, if err is nil
	err     error
}

// mirroredBlob answers a read of a blob: from the store, or as it comes.
func (r *Registry) mirroredBlob(w http.ResponseWriter, req *http.Request, up *upstream, to, local route) {
	if r.has(req.Context(), local) {
		r.serve(w, req, local)
		return
	}
	f := r.fetch(up, to, local)
	stop := context.AfterFunc(req.Context(), func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.changed.Broadcast()
	})
	defer stop()
	whole := req.Header.Get("Range") != "" // which distribution knows how to answer
	f.mu.Lock()
	for !f.done && (whole || f.file == "") && req.Context().Err() == nil {
		f.changed.Wait()
	}
	file, size, done, err := f.file, f.size, f.done, f.err
	f.mu.Unlock()
	switch {
	case req.Context().Err() != nil:
		return
	case err != nil:
		unavailable(w, errcode.ErrorCodeBlobUnknown, err)
		return
	case done:
		r.serve(w, req, local)
		return
	}
	from, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) { // it was finished just now
		r.mirroredBlob(w, req, up, to, local)
		return
	} else if err != nil {
		unavailable(w, errcode.ErrorCodeBlobUnknown, err)
		return
	}
	defer from.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", to.digest)
	if size >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	}
	if req.Method == http.MethodHead {
		return
	}
	if err := f.follow(req.Context(), w, from); err != nil {
		panic(http.ErrAbortHandler) // so that the client does not take it for the whole
	}
}

// follow copies a blob as it comes. The last byte is held back until the digest is known to be right.
func (f *fetch) follow(ctx context.Context, w io.Writer, from io.Reader) error {
	var sent int64
	for {
		f.mu.Lock()
		for !f.done && f.written-1 <= sent && ctx.Err() == nil {
			f.changed.Wait()
		}
		ready, done, err := f.written-1, f.done, f.err
		f.mu.Unlock()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if done {
			if err == nil {
				_, err = io.Copy(w, from)
			}
			return err
		}
		n, err := io.CopyN(w, from, ready-sent)
		if sent += n; err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 { // the writer still has it in its buffer
			f.mu.Lock()
			for !f.done && f.written-1 == ready && ctx.Err() == nil {
				f.changed.Wait()
			}
			f.mu.Unlock()
		}
	}
}

// fetch returns the fetch of a blob, which it begins unless it is under way.
func (r *Registry) fetch(up *upstream, to, local route) *fetch {
	m := r.mirror
	key := local.repository + "@" + local.digest
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.fetches[key]; f != nil {
		return f
	}
	f := &fetch{size: -1}
	f.changed = sync.NewCond(&f.mu)
	m.fetches[key] = f
	m.running.Go(func() {
		err := r.fetchBlob(r.log.context(m.ctx), f, up, to, local)
		m.mu.Lock()
		delete(m.fetches, key)
		m.mu.Unlock()
		f.mu.Lock()
		f.done, f.err = true, err
		f.changed.Broadcast()
		f.mu.Unlock()
		if err != nil && !errors.Is(err, errNotThere) {
			r.log.to.WarnContext(m.ctx, "a blob was not fetched", "component", "registry", "upstream", up.Host, "repository", to.repository, "digest", to.digest, "error", err)
		}
	})
	return f
}

// fetchBlob fetches a blob into the store, where it is visible once its digest is known to be right.
func (r *Registry) fetchBlob(ctx context.Context, f *fetch, up *upstream, to, local route) (err error) {
	repository, err := r.repository(ctx, local.repository)
	if err != nil {
		return err
	}
	want := digest.Digest(to.digest)
	var upload distribution.BlobWriter
	defer func() {
		if err != nil && upload != nil {
			_ = upload.Cancel(context.WithoutCancel(ctx)) // which does nothing after a Commit that failed
			err = errors.Join(err, os.RemoveAll(filepath.Join(r.repositoryDir(local.repository), "_uploads", upload.ID())))
		}
	}()
	err = up.copyTo(ctx, writerFunc(func(p []byte) (int, error) {
		if upload == nil { // only what is there makes a repository
			if err := r.owners.adopt(local.repository); err != nil {
				return 0, &localError{err}
			}
			if upload, err = repository.Blobs(ctx).Create(ctx); err != nil {
				return 0, &localError{err}
			}
		}
		n, err := upload.Write(p)
		f.mu.Lock()
		f.file = filepath.Join(r.repositoryDir(local.repository), "_uploads", upload.ID(), "data")
		f.written += int64(n)
		f.changed.Broadcast()
		f.mu.Unlock()
		if err != nil {
			return n, &localError{err}
		}
		return n, nil
	}), to.repository, to.digest, func(size int64) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.size = size
	})
	if err != nil {
		return err
	}
	if upload == nil {
		return fmt.Errorf("%s sends an empty blob for %s: %w", up.URL, want, errNotThere)
	}
	if _, err = upload.Commit(ctx, imagespec.Descriptor{Digest: want}); err != nil {
		return fmt.Errorf("the blob of %s/%s is not what its digest %s says: %w", up.Host, to.repository, want, err)
	}
	r.lease(want)
	return nil
}

type writerFunc func([]byte) (int, error)

func (w writerFunc) Write(p []byte) (int, error) { return w(p) }
