// Command runnerd-wasm runs WebAssembly modules for runnerd, in the sandbox of the job whose they are. Called as
// "serve" it runs what the daemon asks for at the socket that it was passed; as "serve --limited" it does so for plugins,
// outside of any sandbox; as "compile" it compiles the module on its standard input.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox/wasm/engine"
	"github.com/runnerd/runnerd/sandbox/wasm/wire"
)

// passed is the first descriptor that is passed on (sd_listen_fds(3)).
const passed = 3

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 2 && args[0] == "serve" && args[1] == "--limited" {
		if err := limit(); err != nil {
			return fmt.Errorf("limit what plugins use: %w", err)
		}
		args = args[:1]
	}
	if len(args) != 1 {
		return errors.New("usage: runnerd-wasm serve [--limited] | runnerd-wasm compile")
	}
	switch args[0] {
	case "serve":
		daemon, err := wire.NewConn(os.NewFile(passed, "daemon"))
		if err != nil {
			return fmt.Errorf("connect to the daemon: %w", err)
		}
		server, err := engine.NewServer("/dev/shm")
		if err != nil {
			return err
		}
		return server.Serve(ctx, daemon)
	case "compile":
		return engine.Compile(ctx, os.Stdin, os.Stdout)
	}
	return fmt.Errorf("runnerd-wasm does not know %q", args[0])
}

// Limits of a process without a sandbox, in bytes: of its memory, compiling included, and of a file.
const (
	maxData = 2 << 30
	maxFile = 1 << 30
)

// limit keeps this process within bounds, and from ever having more rights.
func limit() error {
	for resource, most := range map[int]uint64{unix.RLIMIT_DATA: maxData, unix.RLIMIT_FSIZE: maxFile, unix.RLIMIT_CORE: 0} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return err
		}
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}
