package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
)

// stock puts the blobs of an image into the store and links them to its repository: all that pushing it does but for
// the manifest. A push would read and hash each three times, and wait for the disk. Here a blob is copied by the kernel,
// cloned where the file system can, and read once, to be checked. It need not have reached the disk: one that a crash of
// the machine cuts off is copied again by the next start, and none is served before it was checked.
func (l loader) stock(ctx context.Context, repository string, index v1.ImageIndex, d v1.Descriptor) error {
	if d.MediaType.IsIndex() {
		child, err := index.ImageIndex(d.Digest)
		if err != nil {
			return err
		}
		m, err := child.IndexManifest()
		if err != nil {
			return err
		}
		for _, d := range m.Manifests {
			if err := l.stock(ctx, repository, child, d); err != nil {
				return err
			}
		}
		return nil
	}
	if !d.MediaType.IsImage() {
		return nil // that is the push's business
	}
	img, err := index.Image(d.Digest)
	if err != nil {
		return err
	}
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	for _, blob := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if !blob.MediaType.IsDistributable() {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := l.stockBlob(ctx, repository, blob); err != nil {
			return fmt.Errorf("blob %s: %w", blob.Digest, err)
		}
	}
	return nil
}

func (l loader) stockBlob(ctx context.Context, repository string, d v1.Descriptor) error {
	r, want := l.registry, digest.Digest(d.Digest.String())
	if err := want.Validate(); err != nil {
		return err
	}
	_, err, _ := r.layouts.copying.Do(want.String(), func() (any, error) {
		if info, err := os.Stat(r.blobFile(want)); err == nil && info.Size() == d.Size {
			return nil, nil // read checks it
		}
		return nil, l.copyBlob(ctx, d, want)
	})
	if err != nil {
		return err
	}
	in, err := r.repository(ctx, repository)
	if err != nil {
		return err
	}
	if _, err := in.Blobs(ctx).Stat(ctx, want); err == nil {
		return nil
	}
	link := filepath.Join(r.repositoryDir(repository), "_layers", want.Algorithm().String(), want.Encoded(), "link")
	if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(link+".new", []byte(want), 0o600); err != nil {
		return err
	}
	return os.Rename(link+".new", link)
}

// copyStep is how much is copied between two looks whether to go on, in bytes.
const copyStep = 64 << 20

// copyBlob copies a blob of the layout to where distribution keeps it, under another name until it is whole and checked.
func (l loader) copyBlob(ctx context.Context, d v1.Descriptor, want digest.Digest) (err error) {
	from, err := l.from.Blob(d.Digest)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	name := l.registry.blobFile(want)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(name+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	for more := true; more; {
		switch _, err := io.CopyN(f, from, copyStep); {
		case errors.Is(err, io.EOF):
			more = false
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	check := want.Verifier()
	if _, err := io.Copy(check, io.NewSectionReader(f, 0, info.Size())); err != nil {
		return err
	}
	if info.Size() != d.Size || !check.Verified() {
		return errors.New("the file is not what the digest says: run \"make images\", or copy the directory again")
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	l.registry.remember(want, info)
	return nil
}
