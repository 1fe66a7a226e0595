package archive

import (
	"path"

	"golang.org/x/sys/unix"
)

// place is a directory whose files are looked at and read.
type place struct {
	dir string
	fd  int // of the directory, to look beneath; -1: links lead where they lead
}

func openPlace(dir string, beneath bool) (*place, error) {
	p := &place{dir: dir, fd: -1}
	if !beneath {
		return p, nil
	}
	var err error
	p.fd, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return p, err
}

func (p *place) close() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
	}
}

// open opens a name, no link. What leads out is not there.
func (p *place) open(name string, flags int) (int, error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
	if p.fd < 0 {
		return unix.Open(path.Join(p.dir, name), flags, 0)
	}
	for {
		fd, err := unix.Openat2(p.fd, name, &unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
		switch err {
		case unix.EAGAIN, unix.EINTR: // something was renamed meanwhile
			continue
		case unix.EXDEV:
			err = unix.ENOENT
		}
		return fd, err
	}
}

func (p *place) lstat(name string, st *unix.Stat_t) error {
	if p.fd < 0 {
		return unix.Lstat(path.Join(p.dir, name), st)
	}
	fd, err := p.open(name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Fstat(fd, st)
}
