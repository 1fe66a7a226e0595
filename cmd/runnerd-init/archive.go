package main

import (
	"os"
	"runtime/debug"

	"github.com/runnerd/runnerd/archive"
)

// archiver is what the init does as "archive …": it packs files of its working directory, or extracts some into it. In
// the sandbox and as the job's user, so that the daemon resolves no path of a job's.
func archiver(args []string) (code int) {
	defer func() {
		if p := recover(); p != nil {
			code = 2
			_, _ = os.Stderr.WriteString("archive: panic\n")
		}
	}()
	debug.SetMemoryLimit(64 << 20) // it is the job's memory
	dir, err := os.Getwd()
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	return archive.Command(dir, args, os.Stdin, os.Stdout, os.Stderr)
}
