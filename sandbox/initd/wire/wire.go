// Package wire is the conversation between a daemon (package initd) and runnerd-init: one packet for a
// request or a reply, on a pair of SOCK_SEQPACKET sockets. Both sides are built together. It imports next
// to nothing, so that the init stays small.
//
// Integers are unsigned varints, strings are their length and their bytes (encoding/binary's and protocol
// buffers' conventions); each packet holds all fields of its struct, in order, and nothing after them.
package wire

import (
	"encoding/binary"
	"errors"
)

// The two ends of the init's socket pair. The numbers are high because what becomes the init, runc's own
// init, uses low ones: the host must not take one of those for the socket.
const (
	InitFD = 100 // the init reads and writes here
	HostFD = 101 // the host takes this one with pidfd_getfd(2)
)

// Bounds. What may be larger than a packet goes into a memory file beside it.
const (
	MaxPacket = 64 << 10 // bytes of a packet
	MaxSpec   = 8 << 20  // bytes of an encoded Spec
	MaxFiles  = 64       // descriptors beside a packet; the kernel's limit is 253 (SCM_MAX_FD)
	MaxText   = 4 << 10  // bytes of a path or an error (PATH_MAX)
)

// Version is that of the conversation.
const Version = 2

// Op says what a request asks for.
type Op uint64

// The operations.
const (
	Hello  Op = iota + 1 // Number: the version. Begins the packet's session: those before it are over
	Start                // files: spec, stdin, stdout, stderr (without a terminal), then those to pass on
	Signal               // Process, Number: the signal, to the process group
	Kill                 // Process: SIGKILL to the whole tree; answered when nothing of it is left
	Dial                 // Network "unix", "tcp4" or "tcp6"; Address a path, or the IP address and port in network order
	Listen               // the same
	Open                 // Address: the path; Number: open(2)'s flags; Mode
)

// Request is a packet to the init. Session is the host's: a daemon that was started anew has another.
type Request struct {
	Session, ID uint64
	Op          Op
	Process     uint64 // the id of its start request
	Number      uint64
	Mode        uint64
	Network     string
	Address     string
}

// Kind says what a reply is.
type Kind uint64

// The kinds of replies.
const (
	Answer Kind = iota + 1 // to the request of this id; it may carry one file
	Exited                 // the end of the process that the request of this id started
)

// Reply is a packet from the init.
type Reply struct {
	Session, ID uint64
	Kind        Kind
	Errno       uint64 // 0 if there is none; Error then says it all
	Code        uint64 // of an error: what a shell would exit with (126, 127), 0 if it is not the user's
	Status      uint64 // of an exit, as wait4(2) gives it
	Error       string // what failed; empty with Errno 0 if nothing did
}

// Spec is what a start request's memory file holds.
type Spec struct {
	Args, Env  []string
	Dir, User  string
	Terminal   bool
	Rows, Cols uint16
}

// ErrMalformed is the error of every decoder.
var ErrMalformed = errors.New("malformed packet")

// Encode returns r's packet.
func (r Request) Encode() []byte {
	b := encodeUints(r.Session, r.ID, uint64(r.Op), r.Process, r.Number, r.Mode)
	return appendString(appendString(b, r.Network), r.Address)
}

// DecodeRequest reads a packet.
func DecodeRequest(packet []byte) (Request, error) {
	d := decoder{rest: packet}
	r := Request{
		Session: d.uint(), ID: d.uint(), Op: Op(d.uint()), Process: d.uint(), Number: d.uint(), Mode: d.uint(),
		Network: d.string(), Address: d.string(),
	}
	return r, d.end()
}

// Encode returns r's packet.
func (r Reply) Encode() []byte {
	b := encodeUints(r.Session, r.ID, uint64(r.Kind), r.Errno, r.Code, r.Status)
	return appendString(b, r.Error[:min(len(r.Error), MaxText)])
}

// DecodeReply reads a packet.
func DecodeReply(packet []byte) (Reply, error) {
	d := decoder{rest: packet}
	r := Reply{
		Session: d.uint(), ID: d.uint(), Kind: Kind(d.uint()), Errno: d.uint(), Code: d.uint(), Status: d.uint(),
		Error: d.string(),
	}
	return r, d.end()
}

// Encode returns s as a memory file holds it.
func (s Spec) Encode() []byte {
	size := 64
	for _, list := range [][]string{s.Args, s.Env} {
		for _, text := range list {
			size += len(text) + binary.MaxVarintLen32
		}
	}
	b := make([]byte, 0, size+len(s.Dir)+len(s.User))
	for _, list := range [][]string{s.Args, s.Env} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, text := range list {
			b = appendString(b, text)
		}
	}
	b = appendString(appendString(b, s.Dir), s.User)
	terminal := uint64(0)
	if s.Terminal {
		terminal = 1
	}
	for _, n := range []uint64{terminal, uint64(s.Rows), uint64(s.Cols)} {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

// DecodeSpec reads what Encode wrote.
func DecodeSpec(data []byte) (Spec, error) {
	d := decoder{rest: data}
	s := Spec{
		Args: d.strings(), Env: d.strings(), Dir: d.string(), User: d.string(),
		Terminal: d.uint() == 1, Rows: uint16(d.uint()), Cols: uint16(d.uint()),
	}
	if err := d.end(); err != nil {
		return Spec{}, err
	}
	if len(s.Args) == 0 {
		return Spec{}, ErrMalformed
	}
	return s, nil
}

func encodeUints(ns ...uint64) []byte {
	b := make([]byte, 0, 64)
	for _, n := range ns {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decoder reads fields; after the first that is malformed, all are zero.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) uint() uint64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 || d.bad {
		d.bad = true
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *decoder) string() string {
	n := d.uint()
	if d.bad || n > uint64(len(d.rest)) {
		d.bad = true
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}

func (d *decoder) strings() []string {
	n := d.uint()
	if n > uint64(len(d.rest)) { // each takes at least its length
		d.bad = true
	}
	if d.bad {
		return nil
	}
	all := make([]string, 0, min(n, 1024))
	for range n {
		if d.bad {
			return nil
		}
		all = append(all, d.string())
	}
	return all
}

func (d *decoder) end() error {
	if d.bad || len(d.rest) > 0 {
		return ErrMalformed
	}
	return nil
}
