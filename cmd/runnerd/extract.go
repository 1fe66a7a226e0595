package main

import (
	"io"
	"os"

	"github.com/runnerd/runnerd/archive"
)

// extract writes a tar stream into a directory and nowhere else. Files that are there are replaced.
func extract(root *os.Root, r io.Reader) error {
	_, err := archive.Extract(root, r, archive.Limits{}, false)
	return err
}
