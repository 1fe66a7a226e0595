package cache

import (
	"os"

	"golang.org/x/sys/unix"
)

// pipeSize is that of pipes to and from what packs and extracts, in bytes. While all processors compress, Go's
// scheduler looks but every 10 ms whether a pipe has become ready: this much goes through by then.
const pipeSize = 4 << 20

// Pipe makes a pipe for a stream to Save, or from a Reader.
func Pipe() (r, w *os.File, err error) {
	r, w, err = os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	raw, err := w.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) }) // less is only slower
	}
	return r, w, err
}
