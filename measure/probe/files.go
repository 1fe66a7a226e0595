package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

func fileProbes() []Probe {
	return []Probe{
		{Name: "stat", Class: Files, Unit: "op", setup: pinned(statFile)},
		{Name: "open-read", Class: Files, Unit: "op", setup: pinned(openRead)},
		{Name: "create-unlink", Class: Files, Unit: "op", setup: pinned(createUnlink)},
		{Name: "rename", Class: Files, Unit: "op", setup: pinned(rename)},
		{Name: "readdir", Class: Files, Unit: "entry", setup: pinned(readDir)},
		{Name: "fsync", Class: Disk, Unit: "op", Crowds: true, setup: fsync},
		{Name: "direct-read", Class: Disk, Unit: "op", Crowds: true, setup: directRead},
		{Name: "copy-up", Class: Files, Unit: "op", Once: copyUps, setup: copyUp},
	}
}

const blockSize = 4096

// inTree is a setup with a file three directories down, whose operation gets its path and that of its directory.
func inTree(a Args, name string, op func(dir, file string) error) (func(int) error, func() error, error) {
	dir, remove, err := place(a, name)
	if err != nil {
		return nil, nil, err
	}
	deep := filepath.Join(dir, "a", "b", "c")
	file := filepath.Join(deep, "file")
	if err := errors.Join(os.MkdirAll(deep, 0o755), os.WriteFile(file, make([]byte, blockSize), 0o644)); err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return func(n int) error {
		for range n {
			if err := op(deep, file); err != nil {
				return err
			}
		}
		return nil
	}, remove, nil
}

func statFile(a Args) (func(int) error, func() error, error) {
	var st unix.Stat_t
	return inTree(a, "stat", func(_, file string) error { return unix.Stat(file, &st) })
}

// openRead opens a file, reads its 4 KiB and closes it.
func openRead(a Args) (func(int) error, func() error, error) {
	block := make([]byte, blockSize)
	return inTree(a, "open", func(_, file string) error {
		fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		_, err = unix.Read(fd, block)
		return errors.Join(err, unix.Close(fd))
	})
}

// createUnlink makes a file of 4 KiB and removes it.
func createUnlink(a Args) (func(int) error, func() error, error) {
	block := make([]byte, blockSize)
	return inTree(a, "create", func(dir, _ string) error {
		file := dir + "/new"
		fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, block)
		return errors.Join(err, unix.Close(fd), unix.Unlink(file))
	})
}

func rename(a Args) (func(int) error, func() error, error) {
	turn := 0
	return inTree(a, "rename", func(_, file string) error {
		from, to := file, file+"2"
		if turn++; turn%2 == 0 {
			from, to = to, from
		}
		return unix.Rename(from, to)
	})
}

const dirEntries = 1000

// readDir lists a directory of 1,000 files; an operation is an entry.
func readDir(a Args) (func(int) error, func() error, error) {
	dir, remove, err := place(a, "readdir")
	if err != nil {
		return nil, nil, err
	}
	for i := range dirEntries {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o644); err != nil {
			return nil, nil, errors.Join(err, remove())
		}
	}
	buffer := make([]byte, 32<<10)
	return func(n int) error {
		for ; n > 0; n -= dirEntries {
			fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			for got := 1; got > 0 && err == nil; {
				got, err = unix.Getdents(fd, buffer)
			}
			if err := errors.Join(err, unix.Close(fd)); err != nil {
				return err
			}
		}
		return nil
	}, remove, nil
}

// fsync writes 4 KiB and waits until they are where the file system says that they last.
func fsync(a Args) (func(int) error, func() error, error) {
	return withFile(a, "fsync", unix.O_WRONLY, func(fd int, block []byte, at int64) error {
		_, err := unix.Pwrite(fd, block, at)
		return errors.Join(err, unix.Fdatasync(fd))
	})
}

// directRead reads 4 KiB past the page cache.
func directRead(a Args) (func(int) error, func() error, error) {
	return withFile(a, "direct", unix.O_RDONLY|unix.O_DIRECT, func(fd int, block []byte, at int64) error {
		_, err := unix.Pread(fd, block, at)
		return err
	})
}

const directBytes = 16 << 20

// withFile is a setup with a file of 16 MiB, whose operation gets a random place in it and an aligned block.
func withFile(a Args, name string, flags int, op func(fd int, block []byte, at int64) error) (func(int) error, func() error, error) {
	dir, remove, err := place(a, name)
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) (func(int) error, func() error, error) { return nil, nil, errors.Join(err, remove()) }
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, make([]byte, directBytes), 0o644); err != nil {
		return fail(err)
	}
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Fdatasync(fd)
	}
	if err != nil {
		return fail(fmt.Errorf("open %s: %w", path, err))
	}
	block, err := smallPages(blockSize) // a mapping is aligned as O_DIRECT wants it
	if err != nil {
		return fail(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	return func(n int) error {
		for range n {
			if err := op(fd, block, random.Int64N(directBytes/blockSize)*blockSize); err != nil {
				return err
			}
		}
		return nil
	}, func() error { return errors.Join(unix.Close(fd), unix.Munmap(block), remove()) }, nil
}

const (
	// copyUps are how many files one run copies up, maxCopyUp how large each is at the most, in bytes.
	copyUps   = 8
	maxCopyUp = 16 << 10
	// copiedList says which files were copied up already, so that the next run takes others.
	copiedList = ".copied-up"
)

// copyUp opens files of a lower layer to write: an overlay copies them to its upper one first. Each file does that
// once, so that there is one repetition, and a place runs out of them some day.
func copyUp(a Args) (func(int) error, func() error, error) {
	if a.Lower == "" || a.Dir == "" {
		return nil, nil, ErrNotHere
	}
	count := filepath.Join(a.Dir, copiedList)
	text, _ := os.ReadFile(count)
	used, _ := strconv.Atoi(string(text))
	var files []string
	err := filepath.WalkDir(a.Lower, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() == 0 || info.Size() > maxCopyUp {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
			return nil
		}
		if files = append(files, path); len(files) == used+copyUps {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("look for files of the lower layer: %w", err)
	}
	if len(files) < used+copyUps {
		return nil, nil, fmt.Errorf("%w: all files of %s are copied up", ErrNotHere, a.Lower)
	}
	files = files[used:]
	if err := os.WriteFile(count, []byte(strconv.Itoa(used+copyUps)), 0o644); err != nil {
		return nil, nil, err
	}
	for _, f := range files { // the page cache is warm everywhere
		if _, err := os.ReadFile(f); err != nil {
			return nil, nil, err
		}
	}
	return func(n int) error {
		for _, f := range files[:min(n, len(files))] {
			fd, err := unix.Open(f, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open %s to write: %w", f, err)
			}
			if err := unix.Close(fd); err != nil {
				return err
			}
		}
		return nil
	}, nothing, nil
}
