package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/runnerd/runnerd/archive"
)

// extract writes a tar stream into a directory and nowhere else. Files that are there are replaced. The directory may
// be a checkout: unless git is allowed, no job leaves hooks in it, which would run outside of its sandbox.
func extract(root *os.Root, r io.Reader, git bool) error {
	_, err := archive.Extract(root, r, archive.Limits{NoGit: !git}, false)
	if errors.Is(err, archive.ErrGit) {
		return fmt.Errorf("%w: if you trust who has built it, fetch it with 'runnerd outputs JOB -o DIR --allow-git'", err)
	}
	return err
}
