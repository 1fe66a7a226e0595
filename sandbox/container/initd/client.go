package initd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// answerTimeout bounds how long the init may take over anything but a process's life. A sandbox that has
// been frozen, or that starves its init, must not hang the daemon.
const answerTimeout = 30 * time.Second

// Client is the host's side of the conversation with one init. It is safe for concurrent use.
type Client struct {
	conn *net.UnixConn
	gone chan struct{} // closed when the init has ended

	write sync.Mutex

	mu    sync.Mutex
	next  uint64
	calls map[uint64]*call
}

// call is a request that waits for its answer and, of a start, for the exit.
type call struct {
	answer chan answer
	exit   chan int // wait status
}

type answer struct {
	reply
	file *os.File // nil if none came
}

// Connect reaches the init that is process pid, waiting for it to come up. It may be called again for the
// same init, by a daemon that was started anew.
func Connect(ctx context.Context, pid int) (*Client, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	for wait := 200 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		fd, err := unix.PidfdGetfd(pidfd, hostFD, 0)
		if err == nil {
			return newClient(ctx, fd)
		}
		if !errors.Is(err, unix.EBADF) { // not there yet; anything else will not go away
			return nil, fmt.Errorf("reach the init of process %d: %w", pid, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("reach the init of process %d: %w", pid, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

func newClient(ctx context.Context, fd int) (*Client, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "init")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("reach init: %w", err)
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("reach init: not a unix socket")
	}
	c := &Client{
		conn: unixConn, gone: make(chan struct{}), calls: map[uint64]*call{},
		next: rand.Uint64(), // so that answers to a daemon before this one are nobody's
	}
	go c.read()
	if _, err := c.ask(ctx, request{Op: opHello, Version: Version}); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close lets go of the init, which goes on.
func (c *Client) Close() error { return c.conn.Close() }

// read hands replies to the calls that wait for them, until the init is gone.
func (c *Client) read() {
	defer close(c.gone)
	packet, rights := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*maxFiles))
	for {
		n, rightsLen, _, _, err := c.conn.ReadMsgUnix(packet, rights)
		if err != nil || n == 0 {
			return
		}
		file := takeFile(rights[:rightsLen])
		r, err := decode[reply](packet[:n])
		c.mu.Lock()
		waiting := c.calls[r.ID]
		c.mu.Unlock()
		switch {
		case err != nil || waiting == nil:
		case r.Exited:
			select {
			case waiting.exit <- r.Status:
			default:
			}
		default:
			select {
			case waiting.answer <- answer{r, file}:
				file = nil
			default:
			}
		}
		if file != nil {
			file.Close()
		}
	}
}

// takeFile keeps the one file that a reply may carry and closes all that it may not.
func takeFile(rights []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil
	}
	var file *os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if file != nil {
				_ = unix.Close(fd)
				continue
			}
			unix.CloseOnExec(fd)
			_ = unix.SetNonblock(fd, true)
			file = os.NewFile(uintptr(fd), "sandbox")
		}
	}
	return file
}

// begin sends a request and returns the call that waits for what comes of it; end must be called.
func (c *Client) begin(req request, files ...int) (_ *call, id uint64, err error) {
	waiting := &call{answer: make(chan answer, 1), exit: make(chan int, 1)}
	c.mu.Lock()
	c.next++
	req.ID = c.next
	c.calls[req.ID] = waiting
	c.mu.Unlock()
	packet, err := json.Marshal(req)
	if err == nil && len(packet) > maxPacket {
		err = fmt.Errorf("request of %d bytes: at most %d", len(packet), maxPacket)
	}
	if err == nil {
		var rights []byte
		if len(files) > 0 {
			rights = unix.UnixRights(files...)
		}
		c.write.Lock()
		_ = c.conn.SetWriteDeadline(time.Now().Add(answerTimeout))
		_, _, err = c.conn.WriteMsgUnix(packet, rights, nil)
		c.write.Unlock()
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed) {
			err = ErrGone
		}
	}
	if err != nil {
		c.end(req.ID)
		return nil, 0, err
	}
	return waiting, req.ID, nil
}

func (c *Client) end(id uint64) {
	c.mu.Lock()
	waiting := c.calls[id]
	delete(c.calls, id)
	c.mu.Unlock()
	if waiting == nil {
		return
	}
	select { // nobody will take a late file
	case late := <-waiting.answer:
		if late.file != nil {
			late.file.Close()
		}
	default:
	}
}

// await waits for a call's answer.
func (c *Client) await(ctx context.Context, waiting *call) (answer, error) {
	timeout := time.NewTimer(answerTimeout)
	defer timeout.Stop()
	select {
	case a := <-waiting.answer:
		return a, nil
	case <-c.gone:
		return answer{}, ErrGone
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	case <-timeout.C:
		return answer{}, fmt.Errorf("the sandbox's init does not answer within %s", answerTimeout)
	}
}

// ask sends a request that is done when it is answered.
func (c *Client) ask(ctx context.Context, req request) (*os.File, error) {
	waiting, id, err := c.begin(req)
	if err != nil {
		return nil, err
	}
	defer c.end(id)
	a, err := c.await(ctx, waiting)
	if err != nil {
		return nil, err
	}
	if a.Error != "" {
		if a.file != nil {
			a.file.Close()
		}
		return nil, errors.New(a.Error)
	}
	return a.file, nil
}

// Ping returns when the init answers.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.ask(ctx, request{Op: opHello, Version: Version})
	return err
}

// Dial connects from inside the container: network is "unix" or "tcp".
func (c *Client) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	file, err := c.ask(ctx, request{Op: opDial, Network: network, Address: address})
	if err != nil {
		return nil, err
	}
	if file == nil {
		return nil, errors.New("the sandbox's init gave no connection")
	}
	defer file.Close()
	return net.FileConn(file)
}

// Listen opens a socket inside the container.
func (c *Client) Listen(ctx context.Context, network, address string) (*os.File, error) {
	file, err := c.ask(ctx, request{Op: opListen, Network: network, Address: address})
	if err == nil && file == nil {
		err = errors.New("the sandbox's init gave no socket")
	}
	return file, err
}
