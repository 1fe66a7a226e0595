package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/runnerd/runnerd/sandbox"
)

// mainMember is the container in which the job's own processes run.
const mainMember = "main"

// Sandbox is a container sandbox: a sandbox.Pod whose own container is its first member.
type Sandbox struct {
	d      *Driver
	spec   sandbox.Spec
	slot   *slot
	disk   *disk
	base   *base // nil if it has none
	tools  *toolbox
	loans  loans
	cgroup cgroup
	meter  *meter
	stages stages
	addr   netip.Addr
	digest string // of the image of its own container

	main *member

	mu      sync.Mutex
	hosts   map[string]string // beside its own
	members []*member         // in the order they were started
	images  []*image          // that are kept for them
	reached []netip.AddrPort  // of the machine
	closing chan struct{}
	closed  error // once closing is closed
	added   []sandbox.Service
	final   sandbox.Usage
}

var (
	_ sandbox.Pod      = (*Sandbox)(nil)
	_ sandbox.Dialer   = (*Sandbox)(nil)
	_ sandbox.Listener = (*Sandbox)(nil)
	_ sandbox.Imaged   = (*Sandbox)(nil)
	_ sandbox.Named    = (*Sandbox)(nil)
	_ sandbox.Reacher  = (*Sandbox)(nil)
	_ sandbox.Lender   = (*Sandbox)(nil)
)

// Start starts a sandbox on this machine; on is not used, since there is only one.
func (d *Driver) Start(ctx context.Context, _ sandbox.Host, spec sandbox.Spec) (_ sandbox.Sandbox, err error) {
	return d.start(ctx, spec, sandbox.Companion{Name: mainMember, Image: spec.Image, Volumes: spec.Volumes})
}

// StartEngine starts a sandbox whose own container is root of the sandbox's user namespace with all that
// an engine needs in it: a worker, where no job's processes run but those the engine contains.
func (d *Driver) StartEngine(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	return d.start(ctx, spec, sandbox.Companion{Name: mainMember, Image: spec.Image, Engine: true, Volumes: spec.Volumes})
}

func (d *Driver) start(ctx context.Context, spec sandbox.Spec, own sandbox.Companion) (_ *Sandbox, err error) {
	if err := sandbox.CheckID(spec.ID); err != nil {
		return nil, err
	}
	spec.Limits = d.withDefaults(spec.Limits)
	sb := &Sandbox{d: d, spec: spec, hosts: maps.Clone(spec.Hosts), cgroup: cgroup{h: d.cgroups, path: "/" + d.cfg.Name + "/" + spec.ID}}
	sb.meter = newMeter(sb.cgroup)
	d.mu.Lock()
	_, exists := d.live[spec.ID]
	if !exists {
		d.live[spec.ID] = sb
	}
	d.mu.Unlock()
	if exists {
		return nil, fmt.Errorf("start sandbox %s: there is one of this name", spec.ID)
	}
	defer func() {
		if err != nil {
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
			defer cancel()
			err = errors.Join(fmt.Errorf("start sandbox %s: %w", spec.ID, err), sb.Close(cleanup))
		}
	}()

	base, err := d.acquireUIDs(spec)
	if err != nil {
		return nil, err
	}
	if sb.slot, err = newSlot(base); err != nil {
		d.releaseUIDs(spec, base)
		return nil, err
	}
	var img *image
	prepare, prepareCtx := errgroup.WithContext(ctx)
	during := sb.stages.during
	prepare.Go(during(sandbox.StageImage, func() (err error) { img, err = sb.image(prepareCtx, own.Image, spec.Pull); return err }))
	prepare.Go(during(sandbox.StageDisk, func() error { return sb.makeDisk(prepareCtx) }))
	prepare.Go(during(sandbox.StageCgroup, func() error { return sb.makeCgroup() }))
	prepare.Go(during(sandbox.StageNetwork, func() (err error) { sb.addr, err = d.network.attach(spec.ID, sb.slot); return err }))
	if spec.Toolbox != nil {
		prepare.Go(func() error { return sb.getToolbox(prepareCtx) })
	}
	if err := prepare.Wait(); err != nil {
		return nil, err
	}
	sb.digest = img.target.Digest.String()
	if spec.Base != nil {
		if err := during(sandbox.StageBase, func() error { return sb.inherit(ctx) })(); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(sb.account(), sb.writeEtc()); err != nil {
		return nil, err
	}
	create := during(sandbox.StageContainer, func() (err error) { sb.main, err = sb.createMember(ctx, own, img, spec.Env); return err })
	if err := create(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.at[sb.addr] = spec.ID
	d.mu.Unlock()
	sb.disk.still.Lock()
	defer sb.disk.still.Unlock()
	if err := during(sandbox.StageInit, func() error { return sb.main.start(ctx) })(); err != nil {
		return nil, err
	}
	return sb, nil
}

// image gets an image, which is then kept until the sandbox is closed.
func (sb *Sandbox) image(ctx context.Context, ref string, how sandbox.Pull) (*image, error) {
	img, err := sb.d.images.get(ctx, ref, how)
	if err != nil {
		return nil, err
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.closing != nil {
		sb.d.images.release(img)
		return nil, fmt.Errorf("sandbox %s is closed", sb.spec.ID)
	}
	sb.images = append(sb.images, img)
	return img, nil
}

// acquireUIDs finds the sandbox's uid range: a state disk has one for good.
func (d *Driver) acquireUIDs(spec sandbox.Spec) (uint32, error) {
	if spec.State != "" {
		return d.stateUIDs(spec.State)
	}
	return d.uids.acquire(spec.ID)
}

func (d *Driver) releaseUIDs(spec sandbox.Spec, base uint32) {
	if spec.State == "" {
		d.uids.release(base)
	}
}

func (sb *Sandbox) makeDisk(ctx context.Context) (err error) {
	if sb.spec.State != "" {
		dir := sb.d.stateDir(sb.spec.State)
		if sb.disk, err = sb.d.disks.state(ctx, sb.spec.State, dir, sb.spec.Limits, sb.slot.base); err != nil {
			return err
		}
		// What the last run wrote to its root file system is not part of the state.
		return os.RemoveAll(filepath.Join(dir, "rootfs"))
	}
	sb.disk, err = sb.d.disks.scratch(ctx, sb.spec.ID, filepath.Join(sb.dir(), "disk"), sb.spec.Limits, sb.slot.base)
	return err
}

// writeEtc writes the files that tell the members their names and name servers.
func (sb *Sandbox) writeEtc() error {
	if _, err := sb.disk.mkdir("etc", sb.slot.base, 0o755); err != nil {
		return err
	}
	resolv := strings.Builder{}
	for _, server := range sb.d.cfg.DNS {
		fmt.Fprintf(&resolv, "nameserver %s\n", server)
	}
	return errors.Join(
		sb.writeHosts(),
		sb.writeEtcFile("hostname", sb.spec.ID+"\n"),
		sb.writeEtcFile("resolv.conf", resolv.String()),
	)
}

// writeHosts writes /etc/hosts, to which containers are bound.
func (sb *Sandbox) writeHosts() error {
	hosts := strings.Builder{}
	fmt.Fprintf(&hosts, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n%s\t%s\n", sb.addr, sb.spec.ID)
	for _, name := range slices.Sorted(maps.Keys(sb.hosts)) {
		fmt.Fprintf(&hosts, "%s\t%s\n", sb.hosts[name], name)
	}
	return sb.writeEtcFile("hosts", hosts.String())
}

// AddHosts adds names to /etc/hosts. See sandbox.Named.
func (sb *Sandbox) AddHosts(names map[string]string) error {
	for name, address := range names {
		if strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || name == "" {
			return fmt.Errorf("%q is no name of a host", name)
		}
		if _, err := netip.ParseAddr(address); err != nil {
			return fmt.Errorf("the address of %s: %w", name, err)
		}
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.closing != nil {
		return fmt.Errorf("sandbox %s is closed", sb.spec.ID)
	}
	if sb.hosts == nil {
		sb.hosts = map[string]string{}
	}
	maps.Copy(sb.hosts, names)
	return sb.writeHosts()
}

// ImageConfig is what the image of the sandbox's own container says.
func (sb *Sandbox) ImageConfig() sandbox.ImageConfig { return sb.main.ImageConfig() }

func (sb *Sandbox) writeEtcFile(name, text string) error {
	file := filepath.Join(sb.disk.dir, "etc", name)
	return errors.Join(os.WriteFile(file, []byte(text), 0o644), os.Lchown(file, int(sb.slot.base), int(sb.slot.base)))
}

// dir holds the sandbox's mounts.
func (sb *Sandbox) dir() string { return filepath.Join(sb.d.sandboxesDir(), sb.spec.ID) }

// ID is the id the Spec gave.
func (sb *Sandbox) ID() string { return sb.spec.ID }

// ImageDigest is the digest of the image that it was started with.
func (sb *Sandbox) ImageDigest() string { return sb.digest }

// UIDs are the host ids of the sandbox: the first, and how many.
func (sb *Sandbox) UIDs() (first, count uint32) { return sb.slot.base, rangeSize }

// Exec runs p in the sandbox's own container.
func (sb *Sandbox) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	return sb.main.Exec(ctx, p)
}

// Dial connects from inside the sandbox's own container.
func (sb *Sandbox) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return sb.main.Dial(ctx, network, address)
}

// Listen opens a socket inside the sandbox's own container.
func (sb *Sandbox) Listen(ctx context.Context, network, address string) (*os.File, error) {
	return sb.main.Listen(ctx, network, address)
}

// Add starts a companion.
func (sb *Sandbox) Add(ctx context.Context, c sandbox.Companion) (sandbox.Member, error) {
	began := time.Now()
	img, err := sb.image(ctx, c.Image, c.Pull)
	if err != nil {
		return nil, err
	}
	m, err := sb.createMember(ctx, c, img, c.Env)
	if err != nil {
		return nil, err
	}
	if err := m.start(ctx); err != nil {
		return nil, err
	}
	if c.Engine {
		sb.stages.add(sandbox.StageEngine, time.Since(began))
	} else {
		sb.mu.Lock()
		sb.added = append(sb.added, sandbox.Service{Name: c.Name, Image: c.Image, Took: time.Since(began)})
		sb.mu.Unlock()
	}
	return m, nil
}

// SetLimits changes the limits of the running sandbox; those of its disk are what they were at its start.
func (sb *Sandbox) SetLimits(l sandbox.Limits) error { return sb.cgroup.limit(sb.d.withDefaults(l)) }

// Usage is what the sandbox has used so far.
func (sb *Sandbox) Usage(context.Context) (sandbox.Usage, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.closing != nil {
		return sb.final, nil
	}
	return sb.usage(), nil
}

// usage is what the sandbox has used so far. sb.mu is held.
func (sb *Sandbox) usage() sandbox.Usage {
	u := sb.meter.usage()
	sb.cgroup.usage(&u)
	if sb.disk != nil {
		u.Disk = sb.disk.used()
	}
	u.SetUp, u.Services = sb.stages.all(), slices.Clone(sb.added)
	return u
}

// Close ends every process of the sandbox and removes all that Start made. See sandbox.Sandbox.
func (sb *Sandbox) Close(ctx context.Context) error {
	sb.mu.Lock()
	if done := sb.closing; done != nil {
		sb.mu.Unlock()
		select {
		case <-done:
			return sb.closed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	sb.final = sb.usage()
	sb.closing = make(chan struct{})
	sb.mu.Unlock()

	// The removal does not depend on how much time the caller has left.
	var took stages
	sb.closed = sb.remove(context.WithoutCancel(ctx), &took)
	sb.mu.Lock()
	sb.final.TearDown = took.all()
	sb.mu.Unlock()
	close(sb.closing)
	return sb.closed
}

// remove undoes start, in reverse, within twice cleanupTimeout once it is its turn. It goes on after an error, so that
// as little as possible is left.
func (sb *Sandbox) remove(ctx context.Context, took *stages) error {
	var errs []error
	sb.mu.Lock()
	members := slices.Clone(sb.members)
	sb.mu.Unlock()
	killing, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	during := func(name sandbox.StageName, f func() error) { errs = append(errs, took.during(name, f)()) }
	sb.meter.close()
	during(sandbox.StageKill, func() error { return sb.cgroup.kill(killing) })
	if done, err := sb.d.turn(ctx); err == nil { // ctx does not end
		defer done()
	}
	ctx, cancel = context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	var all sync.WaitGroup
	removed := make([]error, len(members)+1)
	for i, m := range members {
		all.Go(func() { removed[i] = took.during(sandbox.StageContainer, func() error { return m.remove(ctx) })() })
	}
	errs = append(errs, sb.unreach(ctx))
	if sb.slot != nil {
		sb.d.mu.Lock()
		if sb.d.at[sb.addr] == sb.spec.ID {
			delete(sb.d.at, sb.addr)
		}
		sb.d.mu.Unlock()
		all.Go(func() {
			removed[len(members)] = took.during(sandbox.StageNetwork, func() error { return sb.d.network.detach(sb.addr) })()
		})
	}
	all.Wait()
	errs = append(errs, removed...)
	if sb.base != nil {
		errs = append(errs, sb.base.close())
	}
	if sb.tools != nil {
		errs = append(errs, sb.tools.close())
	}
	errs = append(errs, sb.loans.close())
	if sb.disk != nil {
		during(sandbox.StageDisk, sb.disk.close)
	}
	sb.cgroup.ooms.close()
	during(sandbox.StageCgroup, func() error { return errors.Join(sb.cgroup.remove(ctx), sb.cgroup.shim().remove(ctx)) })
	if sb.slot != nil {
		errs = append(errs, sb.slot.close())
	}
	errs = append(errs, removeTree(sb.dir()))
	if err := errors.Join(errs...); err != nil {
		// The uid range stays taken: a process of this sandbox may still be alive.
		return fmt.Errorf("close sandbox %s: %w", sb.spec.ID, err)
	}
	if sb.slot != nil {
		sb.d.releaseUIDs(sb.spec, sb.slot.base)
	}
	sb.mu.Lock()
	for _, img := range sb.images {
		sb.d.images.release(img)
	}
	sb.images = nil
	sb.mu.Unlock()
	sb.d.mu.Lock()
	delete(sb.d.live, sb.spec.ID)
	sb.d.mu.Unlock()
	return nil
}

// removeTree removes the empty directories that mounts were on. It never descends into a mount, and
// refuses to remove a file.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(append(errs, os.Remove(dir))...)
}

// PIDs are the sandbox's processes, its companions' included, as the machine numbers them.
func (sb *Sandbox) PIDs() []int { return sb.cgroup.pids() }

// Adopt gives the sandbox, which nobody has used yet, a job's environment and limits.
func (sb *Sandbox) Adopt(s sandbox.Spec) error {
	sb.main.env = mergeEnv(sb.main.env, s.Env)
	sb.meter.restart()
	return sb.SetLimits(s.Limits)
}
