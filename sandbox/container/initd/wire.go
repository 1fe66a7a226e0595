// Package initd speaks with runnerd-init, the first process of every container of a sandbox.
//
// Running a process in a live sandbox by forking from its init costs about a millisecond, where starting
// one from outside (runc exec) costs 25 to 100. The host takes its end of the conversation straight out of
// the init with pidfd_getfd(2): there is no socket in the sandbox's file system, no secret and no
// authority; whoever can do that is already root over the sandbox. What the init says is believed as much
// as the sandbox is, which is not at all: replies are bounded, and can only lie about the sandbox itself.
package initd

import (
	"encoding/json"
	"errors"
	"fmt"
)

// The two ends of the init's socket pair, at numbers that runc does not use while it becomes the init.
const (
	initFD = 100 // the init reads and writes here
	hostFD = 101 // the host takes this one
)

const (
	// maxPacket bounds a packet, in bytes. What may be larger goes into a memory file beside it.
	maxPacket = 16 << 10
	// maxSpec bounds a process's arguments and environment, in bytes.
	maxSpec = 8 << 20
	// maxFiles bounds the descriptors of one packet (SCM_MAX_FD is 253).
	maxFiles = 64
)

// Version is that of the conversation; both sides are built together.
const Version = 1

// The requests.
const (
	opHello  = "hello"
	opStart  = "start"  // files: spec, stdin, stdout, stderr (without a terminal), then those to pass on
	opSignal = "signal" // to the process group
	opKill   = "kill"   // SIGKILL to the whole tree
	opDial   = "dial"
	opListen = "listen"
)

// request is a packet to the init.
type request struct {
	ID      uint64 `json:"id"`
	Op      string `json:"op"`
	Version int    `json:"version,omitempty"`
	Process uint64 `json:"process,omitempty"` // the id of its start request
	Signal  int    `json:"signal,omitempty"`
	Network string `json:"network,omitempty"`
	Address string `json:"address,omitempty"`
}

// reply is a packet from the init: the answer to the request of this id, or, with Exited, the end of the
// process that it started.
type reply struct {
	ID     uint64 `json:"id"`
	Error  string `json:"error,omitempty"`
	Code   int    `json:"code,omitempty"` // of an error: what a shell would exit with (126, 127)
	Exited bool   `json:"exited,omitempty"`
	Status int    `json:"status,omitempty"` // as wait4(2) gives it
}

// processSpec is what a start request's memory file holds.
type processSpec struct {
	Args     []string `json:"args"`
	Env      []string `json:"env"`
	Dir      string   `json:"dir"`
	User     string   `json:"user"`
	Terminal bool     `json:"terminal"`
	Rows     uint16   `json:"rows"`
	Cols     uint16   `json:"cols"`
}

// decode reads one packet strictly.
func decode[T any](packet []byte) (T, error) {
	var v T
	if len(packet) > maxPacket {
		return v, fmt.Errorf("packet of %d bytes", len(packet))
	}
	err := json.Unmarshal(packet, &v)
	return v, err
}

// ErrGone is wrapped by the error of every call to an init that has ended, which is the sandbox's end.
var ErrGone = errors.New("the sandbox has ended")
