package sandbox

import (
	"context"
	"net/netip"
)

// Pod is a Sandbox that can hold further containers beside the job's own, like the containers of a pod:
// same uid range, network namespace, cgroup and scratch disk; each has its own root file system. This is
// how a sandbox gets an engine without one more level of nesting for the job's steps.
type Pod interface {
	Sandbox
	// Add starts a container in the sandbox. It ends with the sandbox at the latest. ctx covers the start.
	// On failure Add leaves nothing behind.
	Add(ctx context.Context, c Companion) (Member, error)
}

// Companion is a container that is started beside the job's own in its sandbox.
type Companion struct {
	// Name is unique in the sandbox: 1 to 20 of [a-z0-9-].
	Name string
	// Image is the companion's root file system, Pull how it is got.
	Image string
	Pull  Pull
	// Env is added to the image's environment.
	Env []string
	// Engine makes the companion root of the sandbox's user namespace with everything an engine needs in
	// it: all capabilities (which bind in that namespace only), unmasked paths, a writable cgroup tree.
	Engine bool
	// Volumes are directories on the scratch disk, shared by all who name them: volume name to the
	// absolute path inside the companion.
	Volumes map[string]string
	// Programs are files of the machine that it sees, read-only, as in Spec.
	Programs map[string]string
	// Borrows is the directory in which it sees what a Lender lends its sandbox, as it is lent. Empty: it sees nothing.
	Borrows string
}

// Member is a running Companion.
type Member interface {
	Host
	Dialer
	Listener
	// Close ends the companion's processes and removes its container. Safe to call twice.
	Close(ctx context.Context) error
}

// ImageConfig is what an image says of how its processes are run (OCI image-spec, config.md).
type ImageConfig struct {
	// Reference is the image's name as it was asked for.
	Reference       string
	Entrypoint, Cmd []string
	// Env is the environment that Exec gives to a process that has none of its own: the image's and what was added.
	Env  []string
	User string
	Dir  string
	// Ports are those that it exposes, such as "5432/tcp".
	Ports []string
}

// Imaged is a Sandbox or a Member that tells what its image says.
type Imaged interface {
	ImageConfig() ImageConfig
}

// Toolboxed is a Sandbox that may have a Toolbox.
type Toolboxed interface {
	// Toolbox is a Host whose processes see the toolbox's image for their root, and are in the sandbox's own container
	// otherwise: with its volumes, /etc/hosts, network and processes. They are root. ok is false if there is none.
	//
	// It is no more than a directory of that container, under /dev, and so costs a mount where a companion would cost a
	// container; what a job does to it, is done.
	Toolbox() (tools ImagedHost, ok bool)
}

// ImagedHost is a Host that tells what its image says.
type ImagedHost interface {
	Host
	Imaged
}

// Named is a Sandbox that gets names for addresses while it runs.
type Named interface {
	// AddHosts adds names to the /etc/hosts of all its containers: name to address.
	AddHosts(names map[string]string) error
}

// Reacher is a Sandbox that can be let reach services of the machine, all of which it is kept from otherwise.
type Reacher interface {
	// Reach lets the sandbox, and no other, open TCP connections to one port at an address of the machine that is not
	// on its loopback, until it is closed.
	Reach(ctx context.Context, service netip.AddrPort) error
}

// Lender is a Pod that lends its companions what the machine has of images, instead of their fetching and unpacking it.
type Lender interface {
	// Lend gets an image as Start does, and shows it to the companions that borrow, read-only and until the sandbox is
	// closed. What it has lent already it lends once.
	Lend(ctx context.Context, ref string, how Pull) (Loan, error)
}

// Loan is an image that is lent. Paths are relative to Companion.Borrows.
type Loan struct {
	// Layers are unpacked, the lowest first.
	Layers []LentLayer `json:"layers"`
	// Blobs are what the image is made of: manifests, configuration, compressed layers.
	Blobs []LentBlob `json:"blobs"`
}

// LentLayer is a layer of an image.
type LentLayer struct {
	// ChainID is the digest of the layer and all below it (OCI image-spec, config.md).
	ChainID string `json:"chain"`
	// Path is a directory that holds "fs", the files as overlay's lowerdir takes them.
	Path string `json:"path"`
}

// LentBlob is a blob of an image.
type LentBlob struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"` // bytes
	Path   string `json:"path"`
}

// Borrower is a Sandbox whose engine can be lent images by the machine.
type Borrower interface {
	// Borrow gives the engine the layers and blobs of an image, so that it need not fetch nor unpack them when it pulls
	// an image that has some of them. It starts no engine: without one it fails.
	Borrow(ctx context.Context, ref string, how Pull) error
}

// DockerHost is a Sandbox in which a Docker Engine can be reached.
type DockerHost interface {
	// EngineReady returns when the engine answers its API (GET /_ping), starting it if need be.
	EngineReady(ctx context.Context) error
	// EngineStarted reports whether the engine has been started so far: a job that never speaks to Docker
	// never pays for one.
	EngineStarted() bool
}
