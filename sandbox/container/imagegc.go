package container

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	containerdimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// viewPrefix begins the names of the views that keep unpacked images, before their chain ids.
const viewPrefix = "view-"

// The labels of a view that say how the image was used, so that a restart does not forget it.
const (
	labelUses     = "runnerd.io/uses"
	labelLastUsed = "runnerd.io/last-used" // time.RFC3339
)

// StoredImage is an image that was unpacked for sandboxes.
type StoredImage struct {
	ID       string // containerd's namespace, a slash, and the chain id of its layers
	Names    []string
	Bytes    int64 // of disk that removing it alone frees
	Created  time.Time
	LastUsed time.Time
	Uses     int64
	InUse    bool // by a sandbox
}

// imageUse is how an image was used since the daemon's start.
type imageUse struct {
	holds int // sandboxes
	uses  int64
	lent  int64 // uses that were loans
	last  time.Time
	noted int64 // uses that the view's labels have
}

// hold notes that a sandbox uses an image, until release. i.mu is held.
func (i *images) hold(img *image) {
	u := i.used[img.id]
	if u == nil {
		u = &imageUse{}
		i.used[img.id] = u
	}
	u.holds++
	u.uses++
	u.last = time.Now()
}

// release ends what get began.
func (i *images) release(img *image) {
	i.mu.Lock()
	defer i.mu.Unlock()
	u := i.used[img.id]
	u.holds--
	u.last = time.Now()
}

// StoredImages lists the unpacked images.
func (d *Driver) StoredImages(ctx context.Context) ([]StoredImage, error) {
	var out []StoredImage
	err := d.images.each(ctx, func(_ context.Context, found *survey) error {
		out = append(out, found.list(d.images)...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the images: %w", err)
	}
	return out, nil
}

// RemoveImages removes unpacked images by their ids, and says how many bytes of disk that has freed. Images that a
// sandbox uses, or that are not there, are skipped; all are while an image is being pulled, which may need their
// layers.
func (d *Driver) RemoveImages(ctx context.Context, ids []string) (freed int64, err error) {
	return d.images.remove(ctx, ids)
}

// private is what the namespaces end with that hold images of one repository: see found.
var private = regexp.MustCompile("^-(own|[0-9a-f]{16})$")

// each looks at every namespace of containerd's in which images are kept.
func (i *images) each(ctx context.Context, look func(context.Context, *survey) error) error {
	all, err := i.client.NamespaceService().List(ctx)
	if err != nil {
		return err
	}
	for _, name := range all {
		if rest, ours := strings.CutPrefix(name, i.cfg.Name); !ours || rest != "" && !private.MatchString(rest) {
			continue
		}
		ctx := namespaces.WithNamespace(ctx, name)
		found, err := i.survey(ctx, name)
		if err == nil {
			err = look(ctx, found)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// survey is what containerd has in one namespace.
type survey struct {
	namespace string
	snapshots map[string]snapshots.Info // by name
	sizes     map[string]int64          // of snapshots, bytes of disk
	images    map[string][]storedImage  // by chain id
}

type storedImage struct {
	name  string
	blobs map[digest.Digest]int64 // bytes
}

func (i *images) survey(ctx context.Context, namespace string) (*survey, error) {
	s := &survey{namespace: namespace, snapshots: map[string]snapshots.Info{}, sizes: map[string]int64{}, images: map[string][]storedImage{}}
	service := i.client.SnapshotService(snapshotter)
	if err := service.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		usage, err := service.Usage(ctx, info.Name)
		if errdefs.IsNotFound(err) {
			return nil // removed meanwhile
		}
		s.snapshots[info.Name], s.sizes[info.Name] = info, usage.Size
		if info.Labels[labelSeeded] != "" {
			s.sizes[info.Name] = 0
		}
		return err
	}); err != nil {
		return nil, err
	}
	all, err := i.client.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	for _, img := range all {
		diffs, err := img.RootFS(ctx)
		if err != nil {
			continue // not pulled to its end; containerd collects it
		}
		manifest, err := containerdimages.Manifest(ctx, i.client.ContentStore(), img.Target(), img.Platform())
		if err != nil {
			continue
		}
		blobs := map[digest.Digest]int64{img.Target().Digest: img.Target().Size}
		for _, blob := range append([]ocispec.Descriptor{manifest.Config}, manifest.Layers...) {
			blobs[blob.Digest] = blob.Size
		}
		chain := identity.ChainID(diffs).String()
		s.images[chain] = append(s.images[chain], storedImage{img.Name(), blobs})
	}
	return s, nil
}

// layers are the snapshots of an image, the view first.
func (s *survey) layers(chain string) (names []string) {
	for name := viewPrefix + chain; name != ""; name = s.snapshots[name].Parent {
		names = append(names, name)
	}
	return names
}

// exclusive is how many bytes of disk only this image takes.
func (s *survey) exclusive(chain string) (n int64) {
	shared := map[string]bool{}
	blobs := map[digest.Digest]bool{}
	for name := range s.snapshots {
		if other, ok := strings.CutPrefix(name, viewPrefix); ok && other != chain {
			for _, l := range s.layers(other) {
				shared[l] = true
			}
		}
	}
	for other, imgs := range s.images {
		for _, img := range imgs {
			for b := range img.blobs {
				blobs[b] = blobs[b] || other != chain
			}
		}
	}
	for _, l := range s.layers(chain) {
		if !shared[l] {
			n += s.sizes[l]
		}
	}
	counted := map[digest.Digest]bool{}
	for _, img := range s.images[chain] {
		for b, size := range img.blobs {
			if !blobs[b] && !counted[b] {
				counted[b] = true
				n += size
			}
		}
	}
	return n
}

func (s *survey) list(i *images) (out []StoredImage) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for name, info := range s.snapshots {
		chain, ok := strings.CutPrefix(name, viewPrefix)
		if !ok {
			continue
		}
		img := StoredImage{ID: s.namespace + "/" + chain, Bytes: s.exclusive(chain), Created: info.Created, LastUsed: info.Created}
		img.Uses, _ = strconv.ParseInt(info.Labels[labelUses], 10, 64)
		if last, err := time.Parse(time.RFC3339, info.Labels[labelLastUsed]); err == nil {
			img.LastUsed = last
		}
		if u := i.used[img.ID]; u != nil {
			img.Uses += u.uses - u.noted
			img.InUse = u.holds > 0
			if u.last.After(img.LastUsed) {
				img.LastUsed = u.last
			}
		}
		for _, stored := range s.images[chain] {
			img.Names = append(img.Names, stored.name)
		}
		slices.Sort(img.Names)
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b StoredImage) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// noteUses writes into the views' labels how the images were used.
func (i *images) noteUses(ctx context.Context) error {
	return i.each(ctx, i.noteUsesOf)
}

func (i *images) noteUsesOf(ctx context.Context, found *survey) error {
	var errs []error
	for _, img := range found.list(i) {
		i.mu.Lock()
		u := i.used[img.ID]
		changed := u != nil && u.uses != u.noted
		if changed {
			u.noted = u.uses
		}
		i.mu.Unlock()
		if !changed {
			continue
		}
		info := found.snapshots[viewPrefix+strings.TrimPrefix(img.ID, found.namespace+"/")]
		labels := map[string]string{}
		for k, v := range info.Labels {
			labels[k] = v
		}
		labels[labelUses], labels[labelLastUsed] = strconv.FormatInt(img.Uses, 10), img.LastUsed.UTC().Format(time.RFC3339)
		info.Labels = labels
		if _, err := i.client.SnapshotService(snapshotter).Update(ctx, info, "labels."+labelUses, "labels."+labelLastUsed); err != nil {
			errs = append(errs, fmt.Errorf("note how an image was used: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (i *images) remove(ctx context.Context, ids []string) (freed int64, err error) {
	if !i.pulling.TryLock() {
		return 0, nil
	}
	defer i.pulling.Unlock()
	err = i.each(ctx, func(ctx context.Context, found *survey) error {
		n, err := i.removeFrom(ctx, found, ids)
		freed += n
		return err
	})
	if err != nil {
		err = fmt.Errorf("remove images: %w", err)
	}
	return freed, err
}

// removeFrom removes the images of one namespace that are among ids.
func (i *images) removeFrom(ctx context.Context, found *survey, ids []string) (freed int64, err error) {
	var errs []error
	removed := false
	for _, id := range ids {
		chain, here := strings.CutPrefix(id, found.namespace+"/")
		if _, there := found.snapshots[viewPrefix+chain]; !here || !there || !i.forget(id) {
			continue
		}
		bytes := found.exclusive(chain)
		if err := i.removeOne(ctx, chain, found.images[chain]); err != nil {
			errs = append(errs, fmt.Errorf("image %s: %w", chain, err))
			continue
		}
		removed = true
		freed += bytes
		delete(found.snapshots, viewPrefix+chain) // the next one's share may be larger now
		delete(found.images, chain)
	}
	if removed {
		errs = append(errs, i.collect(ctx))
	}
	return freed, errors.Join(errs...)
}

// keptLoans is how many images of a namespace are kept that were lent to engines, and nothing else, until the disk is
// short: the next build of a project most likely shares its layers with the last ones.
const keptLoans = 4

// lent notes that an image that is held was lent, and removes others that were, once there are twice as many as are
// kept.
func (i *images) lent(img *image) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.used[img.id].lent++
	var idle []*image
	for _, other := range i.unpacked {
		if u := i.used[other.id]; other.namespace == img.namespace && u != nil && u.holds == 0 && u.lent == u.uses {
			idle = append(idle, other)
		}
	}
	if len(idle) < 2*keptLoans {
		return
	}
	slices.SortFunc(idle, func(a, b *image) int { return i.used[b.id].last.Compare(i.used[a.id].last) })
	var ids []string
	for _, old := range idle[keptLoans:] {
		ids = append(ids, old.id)
	}
	i.removals.Go(func() {
		if err := i.removeLent(img.namespace, ids); err != nil {
			i.cfg.Log.Warn("images that were lent to engines stay until the disk is short", "error", err)
		}
	})
}

// removeLent removes images of one namespace, unless images are being pulled.
func (i *images) removeLent(namespace string, ids []string) error {
	if !i.pulling.TryLock() {
		return nil // the next loan tries again
	}
	defer i.pulling.Unlock()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), namespace), cleanupTimeout)
	defer cancel()
	found, err := i.survey(ctx, namespace)
	if err == nil {
		_, err = i.removeFrom(ctx, found, ids)
	}
	return err
}

// forget makes the next use of an image pull it again, unless a sandbox uses it.
func (i *images) forget(id string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if u := i.used[id]; u != nil && u.holds > 0 {
		return false
	}
	delete(i.used, id)
	for key, img := range i.unpacked {
		if img.id == id {
			delete(i.unpacked, key)
			for _, layer := range img.layers {
				delete(i.marked, layer)
			}
		}
	}
	return true
}

func (i *images) removeOne(ctx context.Context, chain string, stored []storedImage) error {
	for _, img := range stored {
		if err := i.client.ImageService().Delete(ctx, img.name); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	if err := i.client.SnapshotService(snapshotter).Remove(ctx, viewPrefix+chain); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// collect has containerd collect what nothing refers to any more, and returns when it is gone: that is what the
// synchronous end of a lease does.
func (i *images) collect(ctx context.Context) error {
	service := i.client.LeasesService()
	lease, err := service.Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err == nil {
		err = service.Delete(ctx, lease, leases.SynchronousDelete)
	}
	if err != nil {
		return fmt.Errorf("collect the garbage of containerd: %w", err)
	}
	return nil
}
