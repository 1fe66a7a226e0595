package container

import (
	"context"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/initd"
)

// toolboxPath is where the sandbox's own container sees its toolbox. It is on /dev for the same reason as InitPath.
const toolboxPath = "/dev/.runnerd-toolbox"

// toolboxDevices are those of the machine that the tools have: the ones that do the same everywhere.
var toolboxDevices = []string{"full", "null", "random", "tty", "urandom", "zero"}

// toolbox is a second root file system in a sandbox's own container.
type toolbox struct {
	sb      *Sandbox
	image   *image
	config  sandbox.ImageConfig
	rootfs  string
	mounted bool
}

var _ sandbox.Toolboxed = (*Sandbox)(nil)

// getToolbox gets the image of the sandbox's toolbox.
func (sb *Sandbox) getToolbox(ctx context.Context) error {
	want := sb.spec.Toolbox
	img, err := sb.image(ctx, want.Image, want.Pull)
	if err != nil {
		return err
	}
	config := imageConfig(want.Image, img.config)
	config.Env = mergeEnv([]string{initd.DefaultPath}, img.config.Env)
	sb.tools = &toolbox{sb: sb, image: img, config: config, rootfs: filepath.Join(sb.dir(), "toolbox", "rootfs")}
	return nil
}

// mount mounts the toolbox on the machine, and adds to binds what the container is to see of it: the image, and in it
// what else the container is bound to.
func (t *toolbox) mount(sb *Sandbox, binds map[string]string) error {
	if err := os.MkdirAll(t.rootfs, 0o711); err != nil {
		return err
	}
	if err := mountRootFS(t.image, sb.disk, "toolbox", t.rootfs, sb.slot.base); err != nil {
		return err
	}
	t.mounted = true
	all := map[string]string{"": t.rootfs}
	for path, source := range binds {
		all[path] = source
	}
	for path, source := range all {
		binds[toolboxPath+path] = source
	}
	return nil
}

// describe adds to a container's description what tools need besides: devices, and /proc, of which they see as little
// as the rest of the container.
func (t *toolbox) describe(spec *specs.Spec) {
	for _, name := range toolboxDevices {
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: toolboxPath + "/dev/" + name, Type: "bind", Source: "/dev/" + name, Options: []string{"bind"}})
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: toolboxPath + "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}})
	for _, paths := range []*[]string{&spec.Linux.MaskedPaths, &spec.Linux.ReadonlyPaths} {
		for _, path := range *paths {
			*paths = append(*paths, toolboxPath+path)
		}
	}
}

// close unmounts the toolbox, when nothing runs in the sandbox any more.
func (t *toolbox) close() error {
	if !t.mounted {
		return nil
	}
	t.mounted = false
	return unmount(t.rootfs)
}

// Toolbox is where the toolbox's programs run. See sandbox.Toolboxed.
func (sb *Sandbox) Toolbox() (sandbox.ImagedHost, bool) {
	if sb.tools == nil {
		return nil, false
	}
	return sb.tools, true
}

// ImageConfig is what the toolbox's image says.
func (t *toolbox) ImageConfig() sandbox.ImageConfig { return t.config }

// Exec runs p with the toolbox for its root. See sandbox.Host.
func (t *toolbox) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	dir := p.Dir
	if dir == "" {
		dir = "/"
	}
	if p.Env == nil {
		p.Env = t.config.Env
	}
	p.Args = append([]string{InitPath, "chroot", toolboxPath, dir}, p.Args...)
	p.Dir, p.User = "/", "0:0"
	return t.sb.main.Exec(ctx, p)
}
