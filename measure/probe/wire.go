// Package probe has the probes by which the cost of nesting is measured, and the agent that runs them: a process that
// waits at a place, such as a container in a container, and is asked over a unix socket. It takes all times itself, with
// CLOCK_MONOTONIC (which is what time.Since reads), so no client and no exec is in a timed region.
package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Request asks an agent for one thing. One of Probe and Do is set.
type Request struct {
	Probe string `json:"probe,omitempty"` // the name of a Probe
	Do    string `json:"do,omitempty"`    // the name of an errand, see errand.go
	// Loop is how long one repetition takes at the least, Reps how many there are.
	Loop time.Duration `json:"loop,omitempty"`
	Reps int           `json:"reps,omitempty"`
	Args Args          `json:"args"`
}

// Args are what probes need to know of their place.
type Args struct {
	Dir       string `json:"dir,omitempty"`       // on the file system that is measured, the agent's own
	Tools     string `json:"tools,omitempty"`     // has what errand "prepare" made, and a Go toolchain in go
	Lower     string `json:"lower,omitempty"`     // has files of an overlay's lower layer; each is copied up once
	Server    string `json:"server,omitempty"`    // address of an agent that serves, on the other side of the network
	Neighbour string `json:"neighbour,omitempty"` // the same of one on this side
	Resolver  string `json:"resolver,omitempty"`  // asked for names, host:port; empty: that of /etc/resolv.conf
	Process   int    `json:"process,omitempty"`   // for errands
}

// Answer is what came of a Request.
type Answer struct {
	// Nanoseconds is what one operation took: the median of the repetitions.
	Nanoseconds float64 `json:"ns,omitempty"`
	// CPU is the processor time of an operation, its children included, in nanoseconds; a mean.
	CPU   float64 `json:"cpu_ns,omitempty"`
	Ops   int     `json:"ops,omitempty"` // of one repetition
	Text  string  `json:"text,omitempty"`
	Facts *Facts  `json:"facts,omitempty"`
	Error string  `json:"error,omitempty"`
	// NotHere tells that the error is ErrNotHere.
	NotHere bool `json:"not_here,omitempty"`
}

// maxLine bounds an answer: a place's facts are some kilobytes.
const maxLine = 1 << 20

// Agent is a connection to an agent. It is safe for concurrent use; requests are done one after the other.
type Agent struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Reader
}

// NewAgent speaks with an agent over conn, which Close closes.
func NewAgent(conn net.Conn) *Agent {
	return &Agent{conn: conn, in: bufio.NewReader(io.LimitReader(conn, 1<<40))}
}

// Close ends the connection.
func (a *Agent) Close() error { return a.conn.Close() }

// PID is the agent's process as this one's pid namespace numbers it.
func (a *Agent) PID() (int, error) {
	sc, ok := a.conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("the process behind %T: it is no unix socket", a.conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if ctlErr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); ctlErr != nil || err != nil {
		return 0, errors.Join(ctlErr, err)
	}
	return int(cred.Pid), nil
}

// Ask does one request. When ctx ends the connection is of no more use, since its answer is still to come.
func (a *Agent) Ask(ctx context.Context, r Request) (Answer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = a.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := json.Marshal(r)
	if err != nil {
		return Answer{}, err
	}
	if _, err := a.conn.Write(append(line, '\n')); err != nil {
		return Answer{}, a.lost(ctx, r, err)
	}
	var text []byte
	for {
		part, err := a.in.ReadSlice('\n')
		if text = append(text, part...); err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) || len(text) > maxLine {
			return Answer{}, a.lost(ctx, r, err)
		}
	}
	var answer Answer
	if err := json.Unmarshal(text, &answer); err != nil {
		return Answer{}, fmt.Errorf("the probe's answer to %s%s: %w", r.Probe, r.Do, err)
	}
	if answer.NotHere {
		return answer, fmt.Errorf("%s%s: %w", r.Probe, r.Do, ErrNotHere)
	}
	if answer.Error != "" {
		return answer, fmt.Errorf("%s%s: %s", r.Probe, r.Do, answer.Error)
	}
	return answer, nil
}

func (a *Agent) lost(ctx context.Context, r Request, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("ask the probe for %s%s: %w", r.Probe, r.Do, err)
}
