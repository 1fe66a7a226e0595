package main

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tuned becomes a command whose memory the kernel treats otherwise, and that of all that it starts: "merge" lets ksmd
// share equal pages (PR_SET_MEMORY_MERGE; Linux 6.4, kept by exec since 6.7), "small" keeps huge pages away
// (PR_SET_THP_DISABLE). It returns only if that fails, with a shell's exit code.
func tuned(how string, command []string) (code int, err error) {
	for word := range strings.SplitSeq(how, ",") {
		option := map[string]int{"merge": unix.PR_SET_MEMORY_MERGE, "small": unix.PR_SET_THP_DISABLE}[word]
		if option == 0 {
			return 126, unix.EINVAL
		}
		if err := unix.Prctl(option, 1, 0, 0, 0); err != nil {
			return 126, &os.SyscallError{Syscall: "prctl " + strconv.Quote(word), Err: err}
		}
	}
	path, f := lookPath(command[0], os.Environ(), "/")
	if f != nil {
		return f.code, f.error()
	}
	return 126, &os.PathError{Op: "exec", Path: path, Err: unix.Exec(path, command, os.Environ())}
}
