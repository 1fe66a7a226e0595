package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/initd"
)

// taskTimeout bounds how long containerd may take to make or start a task; 70 ms are usual.
const taskTimeout = 30 * time.Second

// initTimeout bounds how long a member's init may take to answer; 1 ms is usual.
const initTimeout = 10 * time.Second

// member is one container of a sandbox.
type member struct {
	sb     *Sandbox
	name   string
	image  sandbox.ImageConfig // but for its environment
	engine bool
	rootfs string
	env    []string
	dir    string // working directory
	user   string

	container client.Container
	task      client.Task
	init      *initd.Client
	mounted   bool

	closeOnce sync.Once
	closeErr  error
}

// createMember makes one container in the sandbox up to where its first process would run.
func (sb *Sandbox) createMember(ctx context.Context, c sandbox.Companion, img *image, env []string) (_ *member, err error) {
	m := &member{
		sb: sb, name: c.Name, engine: c.Engine, image: imageConfig(c.Image, img.config),
		rootfs: filepath.Join(sb.dir(), c.Name, "rootfs"),
		env:    mergeEnv([]string{initd.DefaultPath}, img.config.Env, env),
		dir:    img.config.WorkingDir,
		user:   img.config.User,
	}
	if err := sandbox.CheckID(c.Name); err != nil || len(c.Name) > 20 {
		return nil, fmt.Errorf("companion name %q: 1 to 20 of a-z, 0-9 and - are allowed", c.Name)
	}
	if err := sb.join(m); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.discard(ctx))
		}
	}()
	base := sb.slot.base
	if err := os.MkdirAll(m.rootfs, 0o711); err != nil {
		return nil, err
	}
	if err := mountRootFS(img, sb.disk, m.name, m.rootfs, base); err != nil {
		return nil, err
	}
	m.mounted = true
	etc := filepath.Join(sb.disk.dir, "etc")
	binds := map[string]string{
		"/etc/hosts":       filepath.Join(etc, "hosts"),
		"/etc/hostname":    filepath.Join(etc, "hostname"),
		"/etc/resolv.conf": filepath.Join(etc, "resolv.conf"),
	}
	for volume, path := range c.Volumes {
		if binds[path], err = sb.volume(volume, c); err != nil {
			return nil, err
		}
	}
	if c.Name == mainMember && sb.tools != nil {
		if err := sb.tools.mount(sb, binds); err != nil {
			return nil, err
		}
	}
	readonly := map[string]string{InitPath: filepath.Join(sb.d.cfg.EngineDir, "runnerd-init")}
	maps.Copy(readonly, c.Programs)
	if c.Name == mainMember {
		maps.Copy(readonly, sb.spec.Programs)
		if sb.base != nil {
			maps.Copy(readonly, sb.base.shown)
		}
	}
	spec := specOf(m, sb.spec.ID, readonly, binds)
	if c.Name == mainMember && sb.tools != nil {
		sb.tools.describe(spec)
	}
	if c.Borrows != "" {
		if err := sb.loans.describe(sb, c.Borrows, spec); err != nil {
			return nil, err
		}
	}

	if err := m.create(ctx, spec); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if m.engine {
		if err := sb.cgroup.delegate(m.name, base); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// create has containerd make the container, when it is its turn.
func (m *member) create(ctx context.Context, spec *specs.Spec) error {
	d, id := m.sb.d, m.sb.containerID(m.name)
	done, err := d.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := d.uncancelled(ctx)
	defer cancel()
	m.container, err = d.client.NewContainer(ctx, id, client.WithSpec(spec),
		client.WithRuntime("io.containerd.runc.v2", &options.Options{
			BinaryName: filepath.Join(d.cfg.EngineDir, "runc"),
			Root:       filepath.Join(d.cfg.RunDir, "runc"),
			ShimCgroup: m.sb.cgroup.shim().path,
		}))
	if err == nil {
		m.task, err = m.container.NewTask(ctx, cio.NullIO)
	}
	if err != nil {
		return fmt.Errorf("create container %s: %w", id, err)
	}
	return nil
}

// volume makes a directory of the disk that members share. What a job's own container has from its start is for all
// users of the sandbox: images choose theirs, and they are all the job's.
func (sb *Sandbox) volume(name string, c sandbox.Companion) (string, error) {
	dir, err := sb.disk.mkdir(filepath.Join("volumes", name), sb.slot.base, 0o755)
	if err == nil && c.Name == mainMember && !c.Engine {
		err = os.Chmod(dir, 0o777)
	}
	return dir, err
}

func imageConfig(ref string, c ocispec.ImageConfig) sandbox.ImageConfig {
	return sandbox.ImageConfig{
		Reference: ref, Entrypoint: c.Entrypoint, Cmd: c.Cmd, User: c.User, Dir: c.WorkingDir,
		Ports: slices.Sorted(maps.Keys(c.ExposedPorts)),
	}
}

// ImageConfig is what the member's image says.
func (m *member) ImageConfig() sandbox.ImageConfig {
	c := m.image
	c.Env = m.env
	return c
}

// start starts the member's init and waits until it answers. On failure the member is removed.
func (m *member) start(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start container %s: %w", m.container.ID(), err), m.discard(ctx))
		}
	}()
	starting, cancel := m.sb.d.uncancelled(ctx)
	defer cancel()
	if err := m.task.Start(starting); err != nil {
		return err
	}
	connect, cancel := context.WithTimeoutCause(ctx, initTimeout, errors.New("its init does not answer"))
	defer cancel()
	if m.init, err = initd.Connect(connect, int(m.task.Pid())); err != nil {
		return err
	}
	return m.account()
}

// uncancelled returns a context for what containerd does to a task. It does not end with ctx: what containerd
// was doing when a call is cancelled it cleans up on its own time, and a shim may be left; what is complete,
// remove removes.
func (d *Driver) uncancelled(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(d.context(ctx)), taskTimeout, errors.New("containerd does not answer in time"))
}

// discard closes a member whose start has failed, however much time that left.
func (m *member) discard(ctx context.Context) error {
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return m.Close(cleanup)
}

// join adds m to the members, unless the sandbox is closing or has one of this name.
func (sb *Sandbox) join(m *member) error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.closing != nil {
		return fmt.Errorf("sandbox %s is closed", sb.spec.ID)
	}
	if slices.ContainsFunc(sb.members, func(other *member) bool { return other.name == m.name }) {
		return fmt.Errorf("sandbox %s has a companion called %s", sb.spec.ID, m.name)
	}
	sb.members = append(sb.members, m)
	return nil
}

// containerID is what containerd calls a member.
func (sb *Sandbox) containerID(member string) string { return sb.spec.ID + "." + member }

func (m *member) cgroupPath() string { return m.cgroup().path }

func (m *member) cgroup() cgroup { return m.sb.cgroupOf(m.name) }

// cgroupOf is the cgroup of a member.
func (sb *Sandbox) cgroupOf(member string) cgroup {
	return cgroup{h: sb.cgroup.h, path: sb.cgroup.path + "/" + member}
}

// Exec runs p in the member's container. See sandbox.Host.
func (m *member) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	if p.Env == nil {
		p.Env = m.env
	}
	if p.Dir == "" {
		p.Dir = m.dir
	}
	if p.User == "" {
		p.User = m.user
	}
	before := m.sb.cgroup.oomKills()
	exit, err := m.init.Exec(ctx, p)
	if err == nil && !exit.Success() {
		exit.OOM = m.sb.cgroup.oomKills() > before
	}
	return exit, err
}

// Dial connects from inside the member's container.
func (m *member) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return m.init.Dial(ctx, network, address)
}

// Listen opens a socket inside the member's container.
func (m *member) Listen(ctx context.Context, network, address string) (*os.File, error) {
	return m.init.Listen(ctx, network, address)
}

// Close ends the member and removes its container.
func (m *member) Close(ctx context.Context) error {
	m.sb.meter.note(m.cgroup())
	err := m.cgroup().kill(ctx)
	if err := errors.Join(err, m.remove(ctx)); err != nil {
		return err
	}
	m.sb.mu.Lock()
	defer m.sb.mu.Unlock()
	m.sb.members = slices.DeleteFunc(m.sb.members, func(other *member) bool { return other == m })
	return nil
}

// remove removes the container of a member whose processes are dead.
func (m *member) remove(ctx context.Context) error {
	m.closeOnce.Do(func() {
		m.sb.meter.remove(m.cgroup())
		ctx := m.sb.d.context(ctx)
		var errs []error
		if m.init != nil {
			errs = append(errs, m.init.Close())
		}
		if m.task != nil {
			if _, err := m.task.Delete(ctx, client.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("delete task: %w", err))
			}
		}
		if m.container != nil {
			if err := m.container.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("delete container: %w", err))
			}
		}
		if m.mounted {
			errs = append(errs, unmount(m.rootfs))
		}
		errs = append(errs, removeTree(filepath.Dir(m.rootfs)))
		if m.sb.disk != nil {
			errs = append(errs, os.RemoveAll(filepath.Join(m.sb.disk.dir, "rootfs", m.name)))
		}
		m.closeErr = errors.Join(errs...)
	})
	return m.closeErr
}

// mergeEnv joins environments; later ones win, as in a shell.
func mergeEnv(environments ...[]string) []string {
	var merged []string
	at := map[string]int{}
	for _, env := range environments {
		for _, entry := range env {
			key, _, _ := strings.Cut(entry, "=")
			if i, ok := at[key]; ok {
				merged[i] = entry
				continue
			}
			at[key] = len(merged)
			merged = append(merged, entry)
		}
	}
	return merged
}
