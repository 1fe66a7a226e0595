package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// enter becomes a command that has another directory for its root, where it and its working directory are looked up.
// It returns only if that fails, with a shell's exit code.
func enter(root, dir string, command []string) (code int, err error) {
	if err := unix.Chroot(root); err != nil {
		return 126, &os.PathError{Op: "chroot", Path: root, Err: err}
	}
	if f := workingDir(dir, identity{}); f != nil {
		return 126, f.error()
	}
	if err := os.Chdir(dir); err != nil {
		return 126, err
	}
	path, f := lookPath(command[0], os.Environ(), dir)
	if f != nil {
		return f.code, f.error()
	}
	return 126, &os.PathError{Op: "exec", Path: path, Err: unix.Exec(path, command, os.Environ())}
}

// error is the failure as one.
func (f *failure) error() error {
	if f.errno == 0 {
		return errors.New(f.what)
	}
	return errors.New(f.what + ": " + f.errno.Error())
}
