package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
)

// extract writes a tar stream into a directory and nowhere else, whatever it says: the root follows no link
// out of itself. Files that are there are replaced. Owners, set-id bits and devices are not taken over.
func extract(root *os.Root, r io.Reader) error {
	t := tar.NewReader(r)
	var dirs []*tar.Header
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if h.Name = path.Clean(h.Name); h.Name == "." {
			continue
		}
		if err := extractEntry(root, h, t); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, h)
		}
	}
	for _, h := range slices.Backward(dirs) { // only now, or nothing could be written into them
		if err := errors.Join(root.Chmod(h.Name, mode(h)|0o700), root.Chtimes(h.Name, h.ModTime, h.ModTime)); err != nil {
			return err
		}
	}
	return nil
}

func mode(h *tar.Header) fs.FileMode { return fs.FileMode(h.Mode) & fs.ModePerm }

func extractEntry(root *os.Root, h *tar.Header, r io.Reader) error {
	if err := root.MkdirAll(path.Dir(h.Name), 0o755); err != nil {
		return err
	}
	fi, err := root.Lstat(h.Name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && !(fi.IsDir() && h.Typeflag == tar.TypeDir) {
		if err := root.Remove(h.Name); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(h.Name, 0o755)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, h.Name)
	case tar.TypeLink:
		return root.Link(path.Clean(h.Linkname), h.Name)
	case tar.TypeReg:
	default: // devices and the like
		return nil
	}
	f, err := root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Chmod(mode(h)), f.Close(), root.Chtimes(h.Name, h.ModTime, h.ModTime))
}
