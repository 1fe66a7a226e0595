package probe

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Limits are what the kernel allowed, by trying.
type Limits struct {
	// Overlays is how many overlays lay on one another, OverlayError what the kernel said to the next.
	Overlays     int    `json:"overlays"`
	OverlayError string `json:"overlay_error"`
	// UpperError is what it said to an upper layer on an overlay; empty: it took it.
	UpperError string `json:"upper_error"`
	// Layers is how many lower layers one mount(2) took, of names as short as containerd's client makes them.
	Layers     int    `json:"layers"`
	LayerError string `json:"layer_error"`
	// Namespaces is how many user and pid namespaces lay in one another below the machine's.
	Namespaces     int    `json:"namespaces"`
	NamespaceError string `json:"namespace_error"`
}

// These end a search that the kernel does not end.
const (
	mostOverlays   = 8
	mostLayers     = 1024
	mostNamespaces = 64
)

// findLimits tries in a directory on no overlay, in a mount namespace that is the process's own.
func findLimits(dir string) (l Limits, err error) {
	lower := filepath.Join(dir, "lower")
	if err := os.MkdirAll(lower, 0o755); err != nil {
		return l, err
	}
	var mounted []string
	defer func() {
		for i := len(mounted) - 1; i >= 0; i-- {
			err = errors.Join(err, unix.Unmount(mounted[i], 0))
		}
	}()
	overlay := func(name, lower, upperIn string) (string, error) {
		at := filepath.Join(dir, name)
		upper, work, merged := filepath.Join(upperIn, name+"-upper"), filepath.Join(upperIn, name+"-work"), filepath.Join(at, "merged")
		for _, d := range []string{upper, work, merged} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return "", err
			}
		}
		err := unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work)
		if err == nil {
			mounted = append(mounted, merged)
		}
		return merged, err
	}
	top := lower
	for l.Overlays < mostOverlays {
		merged, err := overlay(fmt.Sprintf("o%d", l.Overlays), top, dir)
		if err != nil {
			l.OverlayError = err.Error()
			break
		}
		l.Overlays++
		top = merged
	}
	if l.Overlays > 0 {
		if _, err := overlay("upper", lower, filepath.Join(dir, "o0", "merged")); err != nil {
			l.UpperError = err.Error()
		}
	}
	if l.Layers, l.LayerError, err = mostLowers(dir); err != nil {
		return l, err
	}
	l.Namespaces, l.NamespaceError = deepest()
	return l, nil
}

// mostLowers mounts read-only overlays of more and more layers, named as containerd names them: relative to the
// directory that they are all in (core/mount/mount_linux.go, compactLowerdirOption).
func mostLowers(dir string) (most int, said string, err error) {
	layers := filepath.Join(dir, "layers")
	for i := range mostLayers {
		if err := os.MkdirAll(filepath.Join(layers, fmt.Sprint(i), "fs"), 0o755); err != nil {
			return 0, "", err
		}
	}
	merged := filepath.Join(dir, "layered")
	if err := os.MkdirAll(merged, 0o755); err != nil {
		return 0, "", err
	}
	old, err := os.Getwd()
	if err != nil {
		return 0, "", err
	}
	if err := os.Chdir(layers); err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, os.Chdir(old)) }()
	low, high := 1, mostLayers // low works, high+1 may not
	for low < high {
		middle := (low + high + 1) / 2
		names := make([]string, middle)
		for i := range names {
			names[i] = fmt.Sprintf("%d/fs", i)
		}
		err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(names, ":"))
		if err != nil {
			said, high = err.Error(), middle-1
			continue
		}
		low = middle
		if err := unix.Unmount(merged, 0); err != nil {
			return 0, "", err
		}
	}
	return low, said, nil
}

// deepest nests namespaces until the kernel refuses, and returns how many there were and what it said.
func deepest() (int, string) {
	out, err := exec.Command("/proc/self/exe", "deeper", "0").CombinedOutput()
	depth, said, ok := strings.Cut(strings.TrimSpace(string(out)), " ")
	n, parseErr := strconv.Atoi(depth)
	if err != nil || !ok || parseErr != nil {
		return 0, fmt.Sprintf("%v: %s", err, out)
	}
	return n, said
}

// Deeper starts itself in a further user and pid namespace, and prints how deep it came and what stopped it.
func Deeper(depth int) error {
	if depth >= mostNamespaces {
		fmt.Println(depth, "nothing")
		return nil
	}
	if depth > 0 {
		if err := ownProc(); err != nil {
			return err
		}
	}
	cmd := exec.Command("/proc/self/exe", "deeper", strconv.Itoa(depth+1))
	cmd.SysProcAttr = nestedProcess(0)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Start()
	if err == nil {
		return cmd.Wait()
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		fmt.Println(depth, errno.Error())
		return nil
	}
	return err
}
