package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/go-digest"
)

// containerdDaemon is the containerd that a runnerd starts for itself when it is not given an address.
type containerdDaemon struct {
	socket string
	exited chan struct{}
	stop   context.CancelFunc
}

// containerdReadyTimeout bounds how long a fresh containerd may take to answer; 40 ms are usual.
const containerdReadyTimeout = 20 * time.Second

// startContainerd starts a containerd whose files lie in stateDir and runDir, and its shims' sockets in shimsDir. It
// ends with this process; the shims, and so the sandboxes, outlive it.
func startContainerd(ctx context.Context, engineDir, stateDir, runDir, shimsDir string) (*containerdDaemon, error) {
	for _, dir := range []string{stateDir, runDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil { // searchable, since mounts below are seen by mapped ids
			return nil, err
		}
	}
	if err := os.MkdirAll(shimsDir, 0o700); err != nil {
		return nil, err
	}
	d := &containerdDaemon{socket: filepath.Join(runDir, "containerd.sock"), exited: make(chan struct{})}
	config := filepath.Join(runDir, "containerd.toml")
	// What a namespace holds must have come there by itself: see found.namespace. Only what sandboxes use is loaded;
	// metadata is written without fsync, since it is rebuilt from the registry after a crash of the machine.
	text := fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.native", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.restart", "io.containerd.monitor.container.v1.restart",
]
[grpc]
  address = %q
[ttrpc]
  address = ""
[plugins."io.containerd.metadata.v1.bolt"]
  no_sync = true
  content_sharing_policy = "isolated"
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %q
[plugins."io.containerd.snapshotter.v1.overlayfs"]
  sync_remove = false
`, stateDir, runDir, d.socket, shimsDir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(runDir, "containerd.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()

	cmd := exec.Command(filepath.Join(engineDir, "containerd"), "--config", config, "--log-level", "warn")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PATH="+engineDir+":"+os.Getenv("PATH")) // where it finds shim and runc
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	stopCtx, stop := context.WithCancel(context.Background())
	d.stop = stop
	go func() {
		runtime.LockOSThread() // a parent-death signal is bound to the thread that forked
		defer runtime.UnlockOSThread()
		defer close(d.exited)
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		end := context.AfterFunc(stopCtx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
		defer end()
		_ = cmd.Wait()
	}()
	if err := <-started; err != nil {
		stop()
		return nil, fmt.Errorf("start containerd: %w: run \"make engines\"", err)
	}
	if err := d.ready(ctx); err != nil {
		logged, _ := os.ReadFile(log.Name())
		return nil, errors.Join(fmt.Errorf("start containerd: %w: %s", err, logged), d.close())
	}
	return d, nil
}

// ready waits until containerd answers an RPC: its socket accepts before it serves.
func (d *containerdDaemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, containerdReadyTimeout, errors.New("no answer in time"))
	defer cancel()
	for {
		if c, err := client.New(d.socket, client.WithTimeout(time.Second)); err == nil {
			serving, err := c.IsServing(ctx)
			if closeErr := c.Close(); err == nil && closeErr == nil && serving {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-d.exited:
			return errors.New("it ended at once")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// close ends containerd and waits for it.
func (d *containerdDaemon) close() error {
	d.stop()
	select {
	case <-d.exited:
		return nil
	case <-time.After(containerdReadyTimeout):
		return errors.New("containerd does not end on SIGTERM")
	}
}

// blobPath is where the driver's own containerd keeps a blob (plugins/content/local there).
func (d *Driver) blobPath(blob digest.Digest) string {
	return filepath.Join(d.cfg.StateDir, "containerd", "io.containerd.content.v1.content", "blobs", blob.Algorithm().String(), blob.Encoded())
}
