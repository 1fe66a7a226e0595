// Command runnerd-lend puts an image that the machine lends, and shows read-only, into the store of the containerd of
// a Docker Engine: its layers become snapshots and its blobs content, both behind links. A pull of the image, or of one
// that has layers of it, then finds them there. It runs in the engine's container, reads what there is to lend (a
// sandbox.Loan) from its standard input, and ends.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/overlay"
)

const (
	// leaseTime is how long the engine keeps what no image of its own has: until the pull that follows.
	leaseTime = 10 * time.Minute
	timeout   = time.Minute
	maxLoan   = 1 << 20 // bytes
)

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: runnerd-lend SOCKET NAMESPACE CONTAINERD-ROOT LOANS <LOAN")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, "runnerd-lend:", err)
		os.Exit(1)
	}
}

func run(socket, namespace, root, loans string) error {
	var loan sandbox.Loan
	if err := json.NewDecoder(io.LimitReader(os.Stdin, maxLoan)).Decode(&loan); err != nil {
		return fmt.Errorf("read what is lent: %w", err)
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), namespace), timeout)
	defer cancel()
	c, err := client.New(socket)
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	defer c.Close()
	lease, err := c.LeasesService().Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseTime))
	if err != nil {
		return fmt.Errorf("make a lease: %w", err)
	}
	ctx = leases.WithLease(ctx, lease.ID)
	b := borrower{root, loans, c.ContentStore(), c.SnapshotService(overlay.Snapshotter)}
	for _, blob := range loan.Blobs {
		if err := b.blob(ctx, blob); err != nil {
			return fmt.Errorf("blob %s: %w", blob.Digest, err)
		}
	}
	parent := ""
	for _, layer := range loan.Layers {
		if err := b.layer(ctx, layer, parent); err != nil {
			return fmt.Errorf("layer %s: %w", layer.ChainID, err)
		}
		parent = layer.ChainID
	}
	return nil
}

// borrower is a containerd that borrows.
type borrower struct {
	root, loans string
	content     content.Store
	snapshots   snapshots.Snapshotter
}

// blob makes a blob known to containerd, which looks for it where it keeps its own before it asks for a byte of it
// (core/metadata/content.go there, the sharing policy "shared").
func (b *borrower) blob(ctx context.Context, lent sandbox.LentBlob) error {
	d, err := digest.Parse(lent.Digest)
	if err != nil {
		return err
	}
	dir := filepath.Join(b.root, "io.containerd.content.v1.content", "blobs", d.Algorithm().String())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err = os.Symlink(filepath.Join(b.loans, lent.Path), filepath.Join(dir, d.Encoded()))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	desc := ocispec.Descriptor{Digest: d, Size: lent.Size}
	w, err := content.OpenWriter(ctx, b.content, content.WithRef("runnerd-lend-"+lent.Digest), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		return nil
	} else if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Commit(ctx, desc.Size, desc.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return nil
}

// layer makes a snapshot of a layer that is unpacked elsewhere.
func (b *borrower) layer(ctx context.Context, lent sandbox.LentLayer, parent string) error {
	key := "runnerd-lend-" + lent.ChainID
	// With this label containerd tells whether there is one by this name (core/metadata/snapshot.go there).
	labels := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: lent.ChainID})
	mounts, err := b.snapshots.Prepare(ctx, key, parent, labels)
	if errdefs.IsAlreadyExists(err) {
		return nil
	} else if err != nil {
		return err
	}
	if err := b.link(mounts, lent); err != nil {
		return errors.Join(err, b.snapshots.Remove(ctx, key))
	}
	if err := b.snapshots.Commit(ctx, lent.ChainID, key, labels); err != nil && !errdefs.IsAlreadyExists(err) {
		return errors.Join(err, b.snapshots.Remove(ctx, key))
	}
	return nil
}

// link puts a link to a lent layer in the place of a fresh snapshot's directory. Removing the snapshot removes the link.
func (b *borrower) link(mounts []mount.Mount, lent sandbox.LentLayer) error {
	upper, err := overlay.UpperDir(mounts)
	if err != nil {
		return err
	}
	if filepath.Base(upper) != "fs" {
		return fmt.Errorf("unexpected mounts %v: is the snapshotter %s?", mounts, overlay.Snapshotter)
	}
	dir := filepath.Dir(upper)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Symlink(filepath.Join(b.loans, lent.Path), dir)
}
