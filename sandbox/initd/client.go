// Package initd speaks with runnerd-init, the first process of every container of a sandbox.
//
// Running a process in a live sandbox by forking from its init costs about a millisecond, where starting
// one from outside (runc exec) costs 25 to 100. The host takes its end of the conversation straight out of
// the init with pidfd_getfd(2): there is no socket in the sandbox's file system, no secret and no
// authority; whoever can do that is already root over the sandbox. Nor does the host resolve a path that
// the sandbox controls: the init opens it inside.
//
// What the init says is believed as much as the sandbox is, which is not at all. The sandbox's root can
// take the socket over: so packets are bounded, waits end, the host never relies on the modes of a
// descriptor that it shares, and a reply can only lie about the sandbox itself.
package initd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox/initd/wire"
)

// answerTimeout bounds how long the init may take over anything but a process's life. A sandbox that has
// been frozen, or that starves its init, must not hang the daemon.
const answerTimeout = 30 * time.Second

// ErrGone is wrapped by the error of every call to an init that has ended, which is the sandbox's end.
var ErrGone = errors.New("the sandbox has ended")

// ErrClosed is wrapped by the error of every call to a Client after its Close.
var ErrClosed = errors.New("the connection to the sandbox's init is closed")

// Client is the host's side of the conversation with one init. It is safe for concurrent use. There must
// be one Client to an init at a time: two would take each other's replies.
type Client struct {
	socket  *os.File
	raw     syscall.RawConn // socket's
	pidfd   *os.File        // of the init
	session uint64

	over   chan struct{} // closed when there will be no more replies
	ending sync.Once
	cause  error // why; set before over is closed

	write sync.Mutex

	mu    sync.Mutex
	next  uint64
	calls map[uint64]*call
}

// call is a request that waits for its answer and, of a start, for the exit.
type call struct {
	id     uint64
	answer chan answer             // of one
	exit   chan syscall.WaitStatus // of one
}

type answer struct {
	wire.Reply
	file *os.File // nil if none came
}

// Connect reaches the init that is process pid, waiting for it to come up. It may be called again for the
// same init, by a daemon that was started anew. ctx covers the connecting.
func Connect(ctx context.Context, pid int) (*Client, error) {
	pidfd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("reach the init of process %d: %w", pid, gone(err))
	}
	c := &Client{
		pidfd: os.NewFile(uintptr(pidfd), "pidfd"), session: rand.Uint64(), over: make(chan struct{}),
		calls: map[uint64]*call{},
	}
	if err := c.connect(ctx, pidfd); err != nil {
		return nil, fmt.Errorf("reach the init of process %d: %w", pid, errors.Join(err, c.Close()))
	}
	return c, nil
}

func (c *Client) connect(ctx context.Context, pidfd int) (err error) {
	if c.socket, err = takeSocket(ctx, pidfd); err != nil {
		return err
	}
	if c.raw, err = c.socket.SyscallConn(); err != nil {
		return err
	}
	process, err := c.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	go c.watch(process)
	go c.read()
	return c.Ping(ctx)
}

// takeSocket takes the host's socket out of the init, once it is there.
func takeSocket(ctx context.Context, pidfd int) (*os.File, error) {
	for wait := 200 * time.Microsecond; ; wait = min(2*wait, time.Millisecond) {
		fd, err := unix.PidfdGetfd(pidfd, wire.HostFD, 0)
		if err == nil {
			if isSocket(fd, unix.AF_UNIX, unix.SOCK_SEQPACKET) && unix.SetNonblock(fd, true) == nil {
				return os.NewFile(uintptr(fd), "init"), nil
			}
			_ = unix.Close(fd)
		} else if !errors.Is(err, unix.EBADF) { // not there yet; anything else will not go away
			return nil, gone(err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

func isSocket(fd, domain, kind int) bool {
	d, err1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	k, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return err1 == nil && err2 == nil && d == domain && k == kind
}

// gone makes ErrGone of errors that say so.
func gone(err error) error {
	for _, is := range []error{unix.ESRCH, unix.EPIPE, unix.ECONNRESET} {
		if errors.Is(err, is) {
			return ErrGone
		}
	}
	return err
}

// Close lets go of the init, which goes on. Calls that wait end with ErrClosed. Safe to call twice.
func (c *Client) Close() error {
	c.end(ErrClosed)
	var errs []error
	for _, f := range []*os.File{c.socket, c.pidfd} {
		if f == nil {
			continue
		}
		if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// end ends the conversation; the first cause counts.
func (c *Client) end(cause error) {
	c.ending.Do(func() {
		c.cause = cause
		close(c.over)
	})
}

// watch waits for the init to end: the socket's other end may have been passed on.
func (c *Client) watch(process syscall.RawConn) {
	err := process.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0
	})
	if err == nil {
		c.end(ErrGone)
	}
}

// read hands replies to the calls that wait for them, until there are no more.
func (c *Client) read() {
	rights := make([]byte, wire.RightsSpace())
	for {
		var n int
		var files []int
		var err error
		packet := receive(c.raw, func(fd int, buffer []byte) error {
			n, files, err = wire.Receive(fd, buffer, rights, unix.MSG_DONTWAIT)
			return err
		})
		if packet == nil {
			return
		}
		tooLarge := errors.Is(err, unix.EMSGSIZE)   // to be the init's
		gone := !tooLarge && (err != nil || n == 0) // the init sends no empty packet
		switch {
		case gone:
			wire.CloseAll(files)
		case !tooLarge:
			c.deliver(packet[:n], files)
		}
		buffers.Put(packet)
		if gone {
			c.end(ErrGone)
			return
		}
	}
}

// deliver hands on one reply. A file that nobody waits for is closed.
func (c *Client) deliver(packet []byte, files []int) {
	defer func() { wire.CloseAll(files) }()
	r, err := wire.DecodeReply(packet)
	if err != nil || r.Session != c.session {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	waiting := c.calls[r.ID]
	if waiting == nil {
		return
	}
	switch r.Kind {
	case wire.Exited:
		select {
		case waiting.exit <- syscall.WaitStatus(r.Status):
		default:
		}
	case wire.Answer:
		if len(waiting.answer) > 0 { // only deliver adds to it
			return
		}
		a := answer{Reply: r}
		if len(files) > 0 {
			_ = unix.SetNonblock(files[0], true)
			a.file = os.NewFile(uintptr(files[0]), "sandbox")
			files = files[1:]
		}
		waiting.answer <- a
	}
}

// begin sends a request and returns the call that waits for what comes of it; forget must be called.
func (c *Client) begin(req wire.Request, files ...int) (*call, error) {
	waiting := &call{answer: make(chan answer, 1), exit: make(chan syscall.WaitStatus, 1)}
	c.mu.Lock()
	c.next++
	waiting.id = c.next
	c.calls[waiting.id] = waiting
	c.mu.Unlock()
	req.Session, req.ID = c.session, waiting.id
	if err := c.send(req.Encode(), files); err != nil {
		c.forget(waiting)
		return nil, err
	}
	return waiting, nil
}

func (c *Client) send(packet []byte, files []int) error {
	c.write.Lock()
	defer c.write.Unlock()
	select {
	case <-c.over:
		return c.cause
	default:
	}
	if err := c.socket.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
		return c.because(err)
	}
	var sendErr error
	err := c.raw.Write(func(fd uintptr) bool {
		sendErr = wire.Send(int(fd), packet, files, unix.MSG_DONTWAIT)
		return !errors.Is(sendErr, unix.EAGAIN)
	})
	if err == nil {
		err = gone(sendErr)
	}
	return c.because(err)
}

// because says why the conversation is over, where err only says that it is.
func (c *Client) because(err error) error {
	if err != nil {
		select {
		case <-c.over:
			return c.cause
		default:
		}
	}
	return err
}

func (c *Client) forget(waiting *call) {
	c.mu.Lock()
	delete(c.calls, waiting.id)
	c.mu.Unlock()
	select { // nobody will take a late file
	case late := <-waiting.answer:
		late.close()
	default:
	}
}

func (a answer) close() {
	if a.file != nil {
		a.file.Close()
	}
}

// await waits for a call's answer.
func (c *Client) await(ctx context.Context, waiting *call) (answer, error) {
	timeout := time.NewTimer(answerTimeout)
	defer timeout.Stop()
	select {
	case a := <-waiting.answer:
		return a, nil
	case <-c.over:
		return answer{}, c.cause
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	case <-timeout.C:
		return answer{}, fmt.Errorf("the sandbox's init does not answer within %s", answerTimeout)
	}
}

// ask sends a request that is done when it is answered. The file is nil when the answer carries none.
func (c *Client) ask(ctx context.Context, req wire.Request) (*os.File, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	waiting, err := c.begin(req)
	if err != nil {
		return nil, err
	}
	defer c.forget(waiting)
	a, err := c.await(ctx, waiting)
	if err != nil {
		return nil, err
	}
	if err := errorOf(a.Reply); err != nil {
		a.close()
		return nil, err
	}
	return a.file, nil
}

// errorOf returns the error that a reply tells of.
func errorOf(r wire.Reply) error {
	text := printable(r.Error[:min(len(r.Error), wire.MaxText)])
	switch {
	case r.Errno != 0:
		return fmt.Errorf("%s: %w", text, syscall.Errno(r.Errno&0xfff))
	case text != "":
		return errors.New(text)
	default:
		return nil
	}
}

// Ping returns when the init answers.
func (c *Client) Ping(ctx context.Context) error {
	file, err := c.ask(ctx, wire.Request{Op: wire.Hello, Number: wire.Version})
	if file != nil {
		file.Close()
	}
	return err
}
