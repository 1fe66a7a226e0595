// Package wire is what the daemon and a sandbox's runtime of modules (runnerd-wasm) say to each other.
//
// The runtime has a SOCK_SEQPACKET socket. The daemon sends it a Start for each run, with the files of the run; one
// of them is a socket for the run alone. On that the runtime sends Asks, each of which but the last has an Answer. When
// the daemon stops sending, the run is to end. The daemon trusts nothing that comes from a runtime: it is in a sandbox.
package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
)

// Program is where a sandbox sees the runtime. It is on /dev, as its init is, so that no image needs a place for it.
const Program = "/dev/.runnerd-wasm"

// MaxModule is the largest module that is read, MaxCompiled the largest that is kept compiled, in bytes.
const (
	MaxModule   = 256 << 20
	MaxCompiled = 1 << 30
)

// Start begins a run. Its files are the run's socket, a memory file with the Run in JSON, and the standard files.
type Start struct{}

// StartFiles is how many files come with a Start.
const StartFiles = 5

// Run is one run of a module.
type Run struct {
	// Path is the module's in the sandbox, relative to Dir; Digest its SHA-256 in hex where it is an artifact that the
	// daemon has.
	Path   string `json:"path,omitempty"`
	Digest string `json:"digest,omitempty"`

	Args   []string       `json:"args"` // args[0] is what the module was called
	Env    []string       `json:"env"`
	Dir    string         `json:"dir"`
	Module sandbox.Module `json:"module"`
}

// Needs of a runtime.
const (
	NeedModule   = "module"   // the artifact; the Answer has it in a file
	NeedCompiled = "compiled" // the module compiled; the Ask has it as it is, in a sealed memory file
)

// Ask is what a runtime needs, or how the run has ended.
type Ask struct {
	Need   string        `json:"need,omitempty"`
	Digest string        `json:"digest,omitempty"` // of the module
	Exit   *sandbox.Exit `json:"exit,omitempty"`
}

// Answer answers an Ask.
type Answer struct {
	// Key is the name under which the engine looks for the compiled module, which is the file with the Answer. None:
	// the runtime is to compile the module by itself.
	Key string `json:"key,omitempty"`
	// Error is why the module cannot be had or compiled.
	Error string `json:"error,omitempty"`
}

// CheckKey reports whether a key may name a file.
func CheckKey(key string) bool {
	return len(key) == 64 && strings.Trim(key, "0123456789abcdef") == ""
}

// Limits of one packet.
const (
	maxPacket = 64 << 10 // bytes
	maxFiles  = StartFiles
)

// Conn carries messages with files.
type Conn struct{ c *net.UnixConn }

// Pair returns two ends, the second as a file that is to be passed on.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "wasm"), os.NewFile(uintptr(fds[1]), "wasm")
	c, err := NewConn(ours)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return c, theirs, nil
}

// NewConn returns the Conn of a socket, and closes the file.
func NewConn(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s is no unix socket", c.LocalAddr().Network()), c.Close())
	}
	return &Conn{u}, nil
}

// Send sends one message with its files, which stay the caller's.
func (c *Conn) Send(message any, files ...*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn() // not Fd, which would make the caller's file block
		if err == nil {
			err = raw.Control(func(fd uintptr) { fds[i] = int(fd) })
		}
		if err != nil {
			return err
		}
	}
	err := c.SendFDs(message, fds)
	runtime.KeepAlive(files)
	return err
}

// SendFDs is Send with descriptors, which the caller keeps open until it returns.
func (c *Conn) SendFDs(message any, fds []int) error {
	packet, err := json.Marshal(message)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = c.c.WriteMsgUnix(packet, rights, nil)
	return err
}

// Receive reads one message. Its files are the caller's, who checks how many there are; on an error there are none.
// io.EOF: the other side sends no more.
func (c *Conn) Receive(message any) (files []*os.File, err error) {
	packet, rights := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, rightsLen, flags, _, err := c.c.ReadMsgUnix(packet, rights)
	if err != nil {
		return nil, err
	}
	control, err := syscall.ParseSocketControlMessage(rights[:rightsLen])
	for _, m := range control {
		fds, _ := syscall.ParseUnixRights(&m)
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	switch {
	case n == 0 && rightsLen == 0:
		err = io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = unix.EMSGSIZE
	case err == nil:
		err = json.Unmarshal(packet[:n], message)
	}
	if err != nil {
		CloseFiles(files)
		return nil, err
	}
	return files, nil
}

// CloseWrite tells the other side that no more comes.
func (c *Conn) CloseWrite() error { return c.c.CloseWrite() }

// Close closes the connection.
func (c *Conn) Close() error { return c.c.Close() }

// CloseFiles closes files.
func CloseFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
