// Command runnerd-probe measures at one place, for "runnerd nesting measure". Nobody else runs it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"

	"github.com/runnerd/runnerd/measure/probe"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "runnerd-probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New(`this program is started by "runnerd nesting measure"`)
	}
	switch args[0] {
	case "true":
		return nil
	case "echo":
		return probe.Echo()
	case "hog":
		probe.Hog()
	case "nest", "nested", "deeper":
		if len(args) < 2 {
			return fmt.Errorf("%s needs a number", args[0])
		}
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		switch args[0] {
		case "deeper":
			return probe.Deeper(n)
		case "nested":
			return probe.Nested(n, args[2:])
		}
		return probe.Nest(n, args[2:])
	case "serve":
		return serve(args[1:])
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// serve makes the place what it is to be and waits for requests at a socket.
func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	filters := flags.Int("seccomp", 0, "how many seccomp filters to be behind")
	storage := flags.String("storage", "", "kind of storage to make in -dir")
	dir := flags.String("dir", "", "directory")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("name one socket")
	}
	if *storage != "" {
		if _, err := probe.MountStorage(*storage, *dir); err != nil {
			return err
		}
	}
	if *filters > 0 {
		if err := probe.Filter(*filters); err != nil {
			return err
		}
	}
	return probe.Serve(flags.Arg(0))
}
