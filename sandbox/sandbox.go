package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Sandbox is what one job gets: a uid range, a network namespace, a cgroup subtree and a scratch disk of
// its own, and in it the job's containers.
type Sandbox interface {
	Host
	// ID is the id its Spec gave it.
	ID() string
	// Usage is what the sandbox has used so far; after Close, what it had used at its end.
	Usage(ctx context.Context) (Usage, error)
	// Close ends every process of the sandbox and removes all that Start made: mounts, namespaces,
	// cgroups, disks, records. It is safe to call twice and from several goroutines, and works when
	// Start's context is already cancelled. Inner sandboxes are closed before outer ones.
	Close(ctx context.Context) error
}

// Driver starts sandboxes of one Kind.
type Driver interface {
	// On are the kinds of layers that the driver can start a sandbox in; "" is the machine itself. It looks at
	// nothing, so that it can be asked of a driver that was not set up (a nil pointer).
	On() []Kind
	// Check tells whether on can hold a sandbox of this kind. Its error says what is missing and how to
	// mend it.
	Check(ctx context.Context, on Host) error
	// Start starts a sandbox on a host and returns when Exec works in it. ctx covers the start, not the
	// sandbox's life. On failure Start leaves nothing behind.
	Start(ctx context.Context, on Host, s Spec) (Sandbox, error)
}

// Spec says what a sandbox is to be.
type Spec struct {
	// ID names the sandbox and everything made for it: 1 to 40 of [a-z0-9-], starting with a letter or
	// digit. It is unique among the live sandboxes of one machine.
	ID string
	// Image is the reference of the image that the job's processes see as their root file system.
	Image string
	// Pull says how the image is got.
	Pull Pull
	// Digest is that of what Image is known to mean now; a sandbox of a Pool that was started with another one is no
	// longer used. Empty: any will do.
	Digest string
	// Env is added to the image's environment.
	Env []string
	// Limits bound what the whole sandbox can use, its engine included.
	Limits Limits
	// Hosts are further lines for /etc/hosts: name to address.
	Hosts map[string]string
	// Programs are files of the machine that its own container sees, read-only: absolute path in it to absolute
	// path on the machine.
	Programs map[string]string
	// Volumes are directories on the sandbox's disk that its containers, and those of an engine in it, see
	// at the same place: volume name to absolute path.
	Volumes map[string]string
	// Toolbox is an image whose programs can be run beside those of its own: see Toolboxed. nil: there is none.
	Toolbox *Toolbox
	// Module is what WebAssembly modules may see and use, in a sandbox with that layer.
	Module Module
	// EngineArgs are further arguments of an engine in the sandbox.
	EngineArgs []string
	// State names a disk that outlives the sandbox, for a worker that keeps its cache between starts.
	// Empty: a scratch disk that is removed by Close. The uid range belongs to the disk, so that files
	// keep their owners.
	State string
	// Base is what it gets of another's state, if not nil. A sandbox with a State has none.
	Base *Base
}

// Toolbox is an image of tools, and how it is got.
type Toolbox struct {
	Image string
	Pull  Pull
}

// Base is what a sandbox gets of a state disk that another one writes, now or later. It never writes that disk.
// As long as it lives, whoever writes the disk must not remove what is on it.
type Base struct {
	State string // as in Spec; ErrNoState is wrapped by Start's error if there is none
	// Volume is what paths are relative to, on the state disk and, for copies, on the sandbox's own.
	Volume string
	// Copy are files that it gets copies of, all as they are at one moment: for as long as copying takes, the
	// sandbox that writes them stands still. MaxBytes is how large they may be together.
	Copy     []string
	MaxBytes int64
	// Show are directories that its own container sees, read-only, as they are now and become: absolute path in
	// it to path in Volume.
	Show map[string]string
}

// StateDisk is a state disk that is there.
type StateDisk struct {
	Name    string    // as in Spec.State
	Bytes   int64     // of the machine's disk that it takes
	Changed time.Time // it was last written
	InUse   bool
}

// Pull says how an image is got, and for whom. Who may not have an image does not get it, wherever it lies already.
type Pull struct {
	Policy PullPolicy
	// Asking are headers that tell the machine's registry who asks; none: the machine's operator.
	Asking map[string]string
	// Username and Password are for the image's own registry, should the machine's not have the image; an empty
	// Username makes the Password an identity token.
	Username, Password string
}

// PullPolicy says when a registry is asked for an image.
type PullPolicy string

// The policies. Whether whoever asks may have the image is asked on every use, by each of them.
const (
	// IfNotPresent takes what the machine has, once its registry takes it for current. It is the default.
	IfNotPresent PullPolicy = "if-not-present"
	// Always asks the image's registry what its tag means now, and fails when that does not answer.
	Always PullPolicy = "always"
	// Never takes what the machine has, however old, and downloads nothing.
	Never PullPolicy = "never"
)

// Limits bound a sandbox. Zero means the driver's default, never "no limit".
type Limits struct {
	CPU    MilliCPU `json:"cpu,omitempty"`    // thousandths of a processor
	Memory int64    `json:"memory,omitempty"` // bytes, swap included
	PIDs   int64    `json:"pids,omitempty"`   // processes and threads
	Disk   int64    `json:"disk,omitempty"`   // bytes of scratch disk
	Inodes int64    `json:"inodes,omitempty"` // files on the scratch disk
}

// MilliCPU counts processors in thousandths, as Kubernetes does.
type MilliCPU int64

// ErrImage is wrapped by Start's error when the image cannot be had, whatever the reason.
var ErrImage = errors.New("the image cannot be had")

// ErrUnknownImage is wrapped by Start's error when the image does not exist where it was looked for.
var ErrUnknownImage = errors.New("image not found")

// ErrNoState is wrapped by Start's error when there is nothing to take a Base from, or not all of it.
var ErrNoState = errors.New("there is no state to start from")

// CheckID reports whether id may name a sandbox.
func CheckID(id string) error {
	if len(id) == 0 || len(id) > 40 {
		return fmt.Errorf("sandbox id %q: must have 1 to 40 characters", id)
	}
	if strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || id[0] == '-' {
		return fmt.Errorf("sandbox id %q: only a-z, 0-9 and - are allowed, and - not first", id)
	}
	return nil
}
