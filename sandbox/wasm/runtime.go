package wasm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/wasm/wire"
)

// runtime is a process of runnerd-wasm in a sandbox.
type runtime struct {
	conn *wire.Conn
	kill context.CancelFunc
	log  *sandbox.Tail
	done chan struct{} // closed when it has ended; then:
	exit sandbox.Exit
	err  error
}

// startRuntime starts a runtime that ends with ctx. It can be spoken to at once.
func startRuntime(ctx context.Context, on sandbox.Host, user string) (*runtime, error) {
	conn, theirs, err := wire.Pair()
	if err != nil {
		return nil, fmt.Errorf("start the runtime of modules: %w", err)
	}
	ctx, kill := context.WithCancel(ctx)
	r := &runtime{conn: conn, kill: kill, log: sandbox.NewTail(4096), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer kill()
		defer conn.Close()
		files := []*os.File{theirs}
		r.exit, r.err = on.Exec(ctx, sandbox.Process{
			Args: []string{wire.Program, "serve"}, Env: []string{}, Dir: "/", User: user,
			Files: files, Stdout: r.log, Stderr: r.log,
		})
		wire.CloseFiles(files)
	}()
	return r, nil
}

func (r *runtime) alive() bool {
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}

// endSoon sees to it that a runtime ends that has broken a conversation off, with io.EOF, or has to be broken off with. It
// waits for one that is on its way, to learn why.
func (r *runtime) endSoon(err error) {
	if errors.Is(err, io.EOF) {
		select {
		case <-r.done:
		case <-time.After(endTimeout):
		}
	}
	r.kill()
	<-r.done
}

// ended is how a run ended whose runtime did. For want of memory is the module's doing; else it is ours.
func (r *runtime) ended() (sandbox.Exit, error) {
	if r.err != nil {
		return sandbox.Exit{}, r.err
	}
	if r.exit.OOM {
		return r.exit, nil
	}
	return sandbox.Exit{}, fmt.Errorf("the runtime of modules ended with %s: %s", r.exit, r.log)
}
