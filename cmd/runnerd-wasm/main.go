// Command runnerd-wasm runs WebAssembly modules for runnerd, in the sandbox of the job whose they are. Called as
// "serve" it runs what the daemon asks for at the socket that it was passed; as "compile" it compiles the module on its
// standard input.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

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
	if len(args) != 1 {
		return errors.New("usage: runnerd-wasm serve|compile")
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
