package initd

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/initd/wire"
)

const (
	// pipeSize is that of the pipes to and from a process, in bytes: large enough that a switch between the
	// two sides is rare.
	pipeSize = 256 << 10
	// copySize is that of the buffers between a pipe and a reader or writer, in bytes.
	copySize = wire.MaxPacket
	// drainTimeout bounds how long output is awaited after the exit, should somebody have escaped from the
	// process's session with its output still open.
	drainTimeout = 2 * time.Second
)

// streams are the standard files of one process. A file or pipe of the caller's is passed on as it is; all
// else goes through a pipe.
type streams struct {
	fds    []int          // the process's: input, output, errors; none with a terminal
	theirs []*os.File     // those of fds that we opened, closed once the process has them
	ours   []*os.File     // our ends
	copies sync.WaitGroup // of output
	done   chan struct{}  // closed at the end
}

// open makes the standard files of a process without a terminal.
func (s *streams) open(p sandbox.Process) error {
	if err := s.input(p.Stdin); err != nil {
		return err
	}
	if err := s.output(p.Stdout); err != nil {
		return err
	}
	if p.Stderr != nil && same(p.Stdout, p.Stderr) {
		s.fds = append(s.fds, s.fds[1])
		return nil
	}
	return s.output(p.Stderr)
}

// same reports whether two writers are one; those that cannot be compared are not.
func same(a, b io.Writer) (same bool) {
	defer func() { _ = recover() }()
	return a == b
}

func (s *streams) input(from io.Reader) error {
	if from == nil {
		return s.null(os.O_RDONLY)
	}
	if file, ok := from.(*os.File); ok && passable(file) {
		s.fds = append(s.fds, int(file.Fd()))
		return nil
	}
	r, w, err := pipe()
	if err != nil {
		return err
	}
	s.theirs, s.fds = append(s.theirs, r), append(s.fds, int(r.Fd()))
	ours, err := own(w)
	if err != nil {
		return err
	}
	s.ours = append(s.ours, ours)
	go func() {
		copyAll(ours, from) // a process may end without reading its input
		ours.Close()
	}()
	return nil
}

func (s *streams) output(to io.Writer) error {
	if to == nil {
		return s.null(os.O_WRONLY)
	}
	if file, ok := to.(*os.File); ok && passable(file) {
		s.fds = append(s.fds, int(file.Fd()))
		return nil
	}
	r, w, err := pipe()
	if err != nil {
		return err
	}
	s.theirs, s.fds = append(s.theirs, w), append(s.fds, int(w.Fd()))
	ours, err := own(r)
	if err != nil {
		return err
	}
	s.ours = append(s.ours, ours)
	s.copies.Go(func() { copyOutput(to, ours) })
	return nil
}

func (s *streams) null(flags int) error {
	null, err := os.OpenFile(os.DevNull, flags, 0)
	if err != nil {
		return err
	}
	s.theirs, s.fds = append(s.theirs, null), append(s.fds, int(null.Fd()))
	return nil
}

// passable reports whether a process can have the caller's file itself: a regular file or a pipe. Like
// os/exec, passing it on makes it a blocking one.
func passable(file *os.File) bool {
	if file == nil {
		return false
	}
	info, err := file.Stat()
	return err == nil && (info.Mode().IsRegular() || info.Mode()&os.ModeType == os.ModeNamedPipe)
}

// pipe makes a pipe that blocks at both ends, as programs expect of theirs.
func pipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize) // less is only slower
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// own makes an end of a pipe ours: one whose Read and Write a Close ends.
func own(end *os.File) (*os.File, error) {
	defer end.Close()
	fd, err := unix.FcntlInt(end.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "pipe"), nil
}

// buffers are of copySize, which is also the most that a packet has.
var buffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// receive calls once with a buffer whenever the file may have something to read, until it returns another error than
// EAGAIN, and returns the buffer, or nil when the file is closed. Nobody who waits holds one: most processes say nothing
// most of the time.
func receive(raw syscall.RawConn, once func(fd int, buffer []byte) error) (buffer *[copySize]byte) {
	_ = raw.Read(func(fd uintptr) bool { // its error is that the file is closed
		buffer = buffers.Get().(*[copySize]byte)
		if !errors.Is(once(int(fd), buffer[:]), unix.EAGAIN) {
			return true
		}
		buffers.Put(buffer)
		buffer = nil
		return false
	})
	return buffer
}

// copyAll copies until the end of either side.
func copyAll(to io.Writer, from io.Reader) error {
	buffer := buffers.Get().(*[copySize]byte)
	defer buffers.Put(buffer)
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buffer[:])
	return err
}

// copyOutput copies until the end; when nobody takes the output any more, the rest is discarded, so that
// the process is not stuck.
func copyOutput(to io.Writer, from *os.File) {
	raw, err := from.SyscallConn()
	if err != nil {
		return // it is closed
	}
	for {
		n := 0
		buffer := receive(raw, func(fd int, buffer []byte) error {
			n, err = unix.Read(fd, buffer)
			for errors.Is(err, unix.EINTR) {
				n, err = unix.Read(fd, buffer)
			}
			return err
		})
		if buffer == nil {
			return
		}
		if n > 0 {
			if _, failed := to.Write(buffer[:n]); failed != nil {
				to = io.Discard
			}
		}
		buffers.Put(buffer)
		if n <= 0 {
			return
		}
	}
}

// terminal connects the master side of the process's terminal, which must be one: a descriptor of some
// other kind might never let go of its reader.
func (s *streams) terminal(master *os.File, p sandbox.Process) error {
	if master == nil {
		return errNoFile
	}
	s.ours = append(s.ours, master)
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	if err := raw.Control(func(fd uintptr) { _, ioctlErr = unix.IoctlGetInt(int(fd), unix.TIOCGPTN) }); err != nil || ioctlErr != nil {
		return errors.New("the sandbox's init sent something else than a terminal")
	}
	if p.Stdin != nil {
		go func() { _ = copyAll(master, p.Stdin) }()
	}
	out := p.Stdout
	if out == nil {
		out = io.Discard
	}
	s.copies.Go(func() { copyOutput(out, master) }) // ends with EIO when the last process is gone
	if p.Terminal.Resize != nil {
		go s.resize(raw.Control, p.Terminal.Resize)
	}
	return nil
}

func (s *streams) resize(control func(func(uintptr)) error, sizes <-chan sandbox.WindowSize) {
	for {
		select {
		case <-s.done:
			return
		case size, ok := <-sizes:
			if !ok || control(func(fd uintptr) {
				_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
			}) != nil {
				return
			}
		}
	}
}

// drain waits for the rest of the output.
func (s *streams) drain() {
	done := make(chan struct{})
	go func() {
		s.copies.Wait()
		close(done)
	}()
	timeout := time.NewTimer(drainTimeout)
	defer timeout.Stop()
	select {
	case <-done:
		return
	case <-timeout.C:
	}
	closeFiles(&s.ours) // ends the copies, unless a Write hangs, which is its owner's to end
	<-done
}

// passed closes what only the process needs.
func (s *streams) passed() { closeFiles(&s.theirs) }

// close ends all copies but a Read of the caller's input that is under way.
func (s *streams) close() {
	close(s.done)
	closeFiles(&s.theirs)
	closeFiles(&s.ours)
	s.copies.Wait()
}

func closeFiles(files *[]*os.File) {
	for _, f := range *files {
		f.Close()
	}
	*files = nil
}
