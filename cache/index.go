package cache

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"gocloud.dev/gcerrors"

	"github.com/runnerd/runnerd/scope"
)

// Entry is what was saved under a key, or as an artifact.
type Entry struct {
	Scope   scope.Scope `json:"scope"`
	Key     string      `json:"key"` // the artifact's name
	Job     string      `json:"job"` // that has saved it
	Created time.Time   `json:"created"`
	Expires time.Time   `json:"expires,omitzero"` // of an artifact
	Bytes   int64       `json:"bytes"`            // before compression
	// Digest is the SHA-256 of the chunks' digests, in order.
	Digest digest  `json:"digest"`
	Chunks []piece `json:"chunks"`

	path string
}

// ID is the entry's, as a budget.Entry has it.
func (e *Entry) ID() string { return e.path }

// piece is a chunk of an entry.
type piece struct {
	Digest digest `json:"d"`
	Bytes  int    `json:"n"`
}

// maxIndex bounds an index, in bytes: 85 a chunk, of which an entry of 100 GiB has at most 1,600,000.
const maxIndex = 150 << 20

func (e *Entry) seal() {
	h := sha256.New()
	for _, p := range e.Chunks {
		h.Write(p.Digest[:])
	}
	e.Digest = digest(h.Sum(nil))
}

// check reports whether e can be what was written under its path.
func (e *Entry) check() error {
	var n int64
	for _, p := range e.Chunks {
		if p.Bytes <= 0 || p.Bytes > maxChunk {
			return fmt.Errorf("%w: a chunk of %d bytes", ErrDamaged, p.Bytes)
		}
		n += int64(p.Bytes)
	}
	want := *e
	want.seal()
	if n != e.Bytes || want.Digest != e.Digest {
		return fmt.Errorf("%w: its index is not what was written", ErrDamaged)
	}
	if e.path != entryPath(e.Scope, e.Key) && e.path != artifactPath(e.Scope, e.Job, e.Key) {
		return fmt.Errorf("%w: its index is another's", ErrDamaged)
	}
	return nil
}

func (e *Entry) chunks() []chunk {
	project := projectID(e.Scope)
	all := make([]chunk, len(e.Chunks))
	for i, p := range e.Chunks {
		all[i] = chunk{project, p.Digest}
	}
	return all
}

// write makes e an entry, at once and whole. The last one wins.
func (s *Store) write(ctx context.Context, e *Entry) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return s.writeObject(ctx, e.path, text)
}

// read reads an index; nil if there is none. A damaged one is dropped, and an error that wraps ErrDamaged.
func (s *Store) read(ctx context.Context, path string) (*Entry, error) {
	r, err := s.bucket.NewReader(ctx, path, nil)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	text, err := io.ReadAll(io.LimitReader(r, maxIndex+1))
	if err != nil {
		return nil, err
	}
	e := &Entry{path: path}
	err = json.Unmarshal(text, e)
	if err != nil || len(text) > maxIndex {
		err = fmt.Errorf("%w: its index cannot be read", ErrDamaged)
	} else {
		err = e.check()
	}
	if err != nil {
		return nil, errors.Join(err, s.remove(ctx, path))
	}
	return e, nil
}

// drop removes a damaged entry, unless another has been saved meanwhile.
func (s *Store) drop(ctx context.Context, e *Entry) error {
	now, err := s.read(ctx, e.path)
	if err != nil || now == nil || now.Digest != e.Digest || !now.Created.Equal(e.Created) {
		return err
	}
	return s.remove(ctx, e.path)
}

// discard deletes an index; one that is gone is gone.
func (s *Store) discard(ctx context.Context, path string) error {
	if err := s.bucket.Delete(ctx, path); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return err
	}
	return nil
}
