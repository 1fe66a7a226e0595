// Package container is the driver of the layer "container": an ordinary containerd container in a user
// namespace of its own with an exclusive host uid range, on a disk of its own, in a cgroup and a network
// of its own. Nothing in it is privileged on the machine, and still an engine can run in it.
package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sync/semaphore"

	"github.com/runnerd/runnerd/sandbox"
)

// cleanupTimeout bounds the removal of one sandbox.
const cleanupTimeout = 30 * time.Second

// Config is what a Driver needs to know. All fields but Containerd, MirrorNames, Public, Upstreams,
// Insecure, MTU, Ports and DNS are needed.
type Config struct {
	// Name tells drivers on one machine apart: of the cgroup below the root, of the nftables table.
	Name string
	// StateDir holds images and disks, on a file system that overlay accepts for upper layers.
	StateDir string
	// RunDir holds sockets and mounts; it is empty after a boot.
	RunDir string
	// EngineDir holds containerd, its shim, runc and runnerd-init.
	EngineDir string
	// Containerd is the socket of a containerd to use; empty starts one.
	Containerd string
	// Mirror is the registry that is asked for all images: host:port on this machine, plain HTTP. MirrorNames are the
	// hosts, with or without a port, by which the names of images mean it itself.
	Mirror      string
	MirrorNames []string
	// Public are headers with which Mirror answers as it does one who may read what all may, and no more.
	Public map[string]string
	// Upstreams are where the registries answer that Mirror fetches images of, by the hosts in the names of images;
	// Insecure are hosts of others that speak plain HTTP. Without Upstreams no other registry is asked for anything.
	Upstreams map[string]string
	Insecure  []string
	// Subnet is where sandboxes get their addresses from; its first one is the machine.
	Subnet netip.Prefix
	// MTU of the sandboxes' interfaces; 0 derives it from the machine's.
	MTU int
	// Ports are the machine's TCP ports that sandboxes may use, at the subnet's first address.
	Ports []int
	// DNS are the sandboxes' name servers; none means the machine's.
	DNS []string
	// FirstUID and UIDRanges are the host ids for sandboxes: UIDRanges ranges of 65,536 from FirstUID.
	FirstUID  uint32
	UIDRanges int
	// Defaults are the limits of a Spec that does not say.
	Defaults sandbox.Limits
	Log      *slog.Logger
}

// Driver starts container sandboxes on this machine. It is safe for concurrent use.
type Driver struct {
	cfg        Config
	containerd *containerdDaemon // nil if it is not ours
	client     *client.Client
	images     *images
	disks      *disks
	uids       *uidRanges
	network    *network
	cgroups    hierarchies
	claim      *held
	turns      *semaphore.Weighted // see turn

	mu   sync.Mutex
	live map[string]*Sandbox
	at   map[netip.Addr]string // the ids of live ones by address
}

// New makes the machine ready for sandboxes: starts containerd, sets up the network, and removes what an
// earlier driver of the same name and directories left behind, whatever moment it was killed at. It fails, before
// it changes anything, if another driver of the machine has addresses or host ids of cfg's.
func New(ctx context.Context, cfg Config) (_ *Driver, err error) {
	d := &Driver{
		cfg:   cfg,
		disks: &disks{dir: filepath.Join(cfg.StateDir, "disks"), log: cfg.Log},
		uids:  newUIDRanges(cfg.FirstUID, cfg.UIDRanges),
		turns: semaphore.NewWeighted(int64(2 * runtime.NumCPU())),
		live:  map[string]*Sandbox{}, at: map[netip.Addr]string{},
	}
	if len(cfg.DNS) == 0 {
		d.cfg.DNS = resolvers()
	}
	for _, dir := range []string{cfg.StateDir, cfg.RunDir, d.sandboxesDir(), d.tempMountsDir()} {
		if err := os.MkdirAll(dir, 0o711); err != nil { // searchable by mapped ids
			return nil, err
		}
	}
	if err := checkOverlays(cfg.StateDir); err != nil {
		return nil, err
	}
	mount.SetTempMountLocation(d.tempMountsDir())
	if d.cgroups, err = findHierarchies(); err != nil {
		return nil, err
	}
	d.network = newNetwork(cfg.Name, cfg.Subnet, cfg.MTU, cfg.Ports)
	claim := Claim{Name: cfg.Name, StateDir: cfg.StateDir, PID: os.Getpid(), Subnet: cfg.Subnet, FirstUID: cfg.FirstUID, UIDRanges: cfg.UIDRanges}
	if d.claim, err = claim.take(ctx, claimsDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close(context.WithoutCancel(ctx)))
		}
	}()
	socket := cfg.Containerd
	if socket == "" {
		if err := d.endShims(ctx); err != nil {
			return nil, fmt.Errorf("end what an earlier run left: %w", err)
		}
		if d.containerd, err = startContainerd(ctx, cfg.EngineDir, filepath.Join(cfg.StateDir, "containerd"), filepath.Join(cfg.RunDir, "containerd"), d.shimsDir()); err != nil {
			return nil, err
		}
		socket = d.containerd.socket
	}
	if d.client, err = client.New(socket, client.WithDefaultNamespace(d.namespace())); err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", socket, err)
	}
	d.images = newImages(d.client, cfg)
	if err := d.images.share(ctx); err != nil {
		return nil, err
	}
	if err := d.sweep(ctx); err != nil {
		return nil, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	if err := d.createRoot(); err != nil {
		return nil, err
	}
	if err := d.claimStateDisks(); err != nil {
		return nil, err
	}
	return d, d.network.up(ctx)
}

// createRoot makes the cgroup that holds the sandboxes'. All of them together weigh as much as the machine has
// processors: the kernel weighs a cgroup like one process beside it, however many it holds.
func (d *Driver) createRoot() error {
	root := cgroup{h: d.cgroups, path: "/" + d.cfg.Name}
	if err := root.mkdirs(); err != nil {
		return err
	}
	if err := root.weigh(sandbox.MilliCPU(1000 * runtime.NumCPU())); err != nil {
		return fmt.Errorf("weigh the sandboxes' cgroup: %w", err)
	}
	return nil
}

// Gateway is the machine's address as every sandbox sees it.
func (d *Driver) Gateway() netip.Addr { return d.network.gateway }

// SandboxAt is the id of the sandbox that has an address, for a service of the machine that wants to know who asks:
// a sandbox can send from no other. It is known before the first process of the sandbox runs.
func (d *Driver) SandboxAt(addr netip.Addr) (id string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id, ok = d.at[addr]
	return id, ok
}

// MTU is that of the sandboxes' interfaces, in bytes.
func (d *Driver) MTU() int { return d.network.mtu }

// On is the machine: the driver is told nothing of any other host's containerd.
func (*Driver) On() []sandbox.Kind { return []sandbox.Kind{""} }

// Check tells whether this machine can hold container sandboxes.
func (d *Driver) Check(ctx context.Context, _ sandbox.Host) error {
	serving, err := d.client.IsServing(ctx)
	if err != nil {
		return fmt.Errorf("containerd does not answer: %w: restart runnerd", err)
	}
	if !serving {
		return errors.New("containerd is not serving: restart runnerd")
	}
	return nil
}

// Pull makes an image ready, so that the first sandbox that uses it need not wait for it.
func (d *Driver) Pull(ctx context.Context, ref string) error {
	img, err := d.images.get(ctx, ref, sandbox.Pull{})
	if err == nil {
		d.images.release(img)
	}
	return err
}

// Authorise reports whether one who asks may have an image, and the digest of what its name means now, for a sandbox
// that was started with it before they did.
func (d *Driver) Authorise(ctx context.Context, ref string, how sandbox.Pull) (digest string, err error) {
	f, err := d.images.find(ctx, ref, how)
	if err != nil {
		return "", &imageError{ref, err}
	}
	return f.digest.String(), nil
}

// turn waits until containerd is asked for little enough that it answers in time. Each container costs it, the shim and
// runc some tenths of a second of processor time: of a hundred that are asked for at once none would be there in time.
func (d *Driver) turn(ctx context.Context) (done func(), err error) {
	if err := d.turns.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	return func() { d.turns.Release(1) }, nil
}

// Close ends all sandboxes, removes the network and stops the containerd that New started.
func (d *Driver) Close(ctx context.Context) error {
	d.mu.Lock()
	live := make([]*Sandbox, 0, len(d.live))
	for _, sb := range d.live {
		live = append(live, sb)
	}
	d.mu.Unlock()
	errs := make([]error, len(live))
	var all sync.WaitGroup
	for i, sb := range live {
		all.Go(func() { errs[i] = sb.Close(ctx) })
	}
	all.Wait()
	errs = append(errs, d.network.down(ctx))
	if d.client != nil {
		if d.images != nil {
			d.images.removals.Wait()
		}
		if d.images != nil && ctx.Err() == nil {
			if err := d.images.noteUses(d.context(ctx)); err != nil { // the images look unused then, no more
				d.cfg.Log.Warn("how images were used is forgotten", "error", err)
			}
		}
		errs = append(errs, d.client.Close())
	}
	if d.containerd != nil {
		errs = append(errs, d.containerd.close())
	}
	errs = append(errs, d.removeRoots(ctx))
	err := errors.Join(errs...)
	return errors.Join(err, d.claim.release(err != nil))
}

// removeRoots removes the emptied directories and cgroup that hold the sandboxes.
func (d *Driver) removeRoots(ctx context.Context) error {
	if len(d.live) > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	return errors.Join(
		cgroup{h: d.cgroups, path: "/" + d.cfg.Name}.remove(ctx),
		d.shims().remove(ctx),
		removeEmpty(d.sandboxesDir()),
		removeEmpty(d.tempMountsDir()),
		removeEmpty(d.loansDir()),
		os.RemoveAll(d.shimsDir()), // the last shim may still be on its way out
	)
}

func removeEmpty(dir string) error {
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (d *Driver) namespace() string    { return d.cfg.Name }
func (d *Driver) sandboxesDir() string { return filepath.Join(d.cfg.RunDir, "sandboxes") }

// loansDir holds links to the blobs that are lent to sandboxes: they must be on the file system of containerd's content.
func (d *Driver) loansDir() string { return filepath.Join(d.cfg.StateDir, "loans") }

// tempMountsDir is where containerd's client mounts what it only looks into.
func (d *Driver) tempMountsDir() string { return filepath.Join(d.cfg.RunDir, "tmp") }

// shimsDir is where the shims listen: a directory of the driver's own, so that the sockets of killed shims are known
// for its own, whatever they were doing. It is not in RunDir since containerd takes 42 bytes at the most.
func (d *Driver) shimsDir() string { return filepath.Join("/run", d.cfg.Name+".shims") }

// context returns ctx with the driver's containerd namespace.
func (d *Driver) context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, d.namespace())
}

// withDefaults fills the limits that l does not say.
func (d *Driver) withDefaults(l sandbox.Limits) sandbox.Limits {
	if l.CPU == 0 {
		l.CPU = d.cfg.Defaults.CPU
	}
	if l.Memory == 0 {
		l.Memory = d.cfg.Defaults.Memory
	}
	if l.PIDs == 0 {
		l.PIDs = d.cfg.Defaults.PIDs
	}
	if l.Disk == 0 {
		l.Disk = d.cfg.Defaults.Disk
	}
	if l.Inodes == 0 {
		l.Inodes = d.cfg.Defaults.Inodes
	}
	l.Inodes = min(l.Inodes, l.Disk/bytesPerInode)
	return l
}

// bytesPerInode keeps a small disk from being all inodes.
const bytesPerInode = 8192
