package archive

import (
	"bufio"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// sink is where an archive goes. What goes into a pipe is moved there from its file within the kernel, if it is
// enough: splice(2) passes pages on and copies nothing.
type sink struct {
	*bufio.Writer
	pipe  *os.File // nil: none, or one that the files cannot be spliced into
	from  int      // the file that the next bytes are in, -1: they are in memory
	empty []byte   // as long as what is spliced at once
}

// spliceLeast is from how many bytes on a file is spliced: less is cheaper to copy with what surrounds it.
const spliceLeast = 8 << 10

func newSink(w io.Writer) *sink {
	s := &sink{Writer: bufio.NewWriterSize(w, 256<<10), from: -1}
	if f, ok := w.(*os.File); ok {
		if fi, err := f.Stat(); err == nil && fi.Mode()&os.ModeNamedPipe != 0 {
			s.pipe, s.empty = f, make([]byte, 1<<20)
		}
	}
	return s
}

var errShorter = errors.New("it has become shorter while it was packed: end what writes it")

// copy has to, which writes to s, write n bytes of a file.
func (s *sink) copy(to io.Writer, fd int, n int64) error {
	if s.pipe != nil && n >= spliceLeast {
		s.from = fd
		defer func() { s.from = -1 }()
		for n > 0 {
			m, err := to.Write(s.empty[:min(n, int64(len(s.empty)))])
			if err != nil {
				return err
			}
			n -= int64(m)
		}
		return nil
	}
	for n > 0 {
		if s.Available() < 4096 {
			if err := s.Flush(); err != nil {
				return err
			}
		}
		buf := s.AvailableBuffer() // so that Write copies it to where it is
		m, err := unix.Read(fd, buf[:min(n, int64(cap(buf)))])
		if err == unix.EINTR {
			continue
		}
		if err == nil && m == 0 {
			err = errShorter
		}
		if err != nil {
			return err
		}
		if _, err := to.Write(buf[:m]); err != nil {
			return err
		}
		n -= int64(m)
	}
	return nil
}

// Write implements io.Writer: of what is in a file, p says only how much it is.
func (s *sink) Write(p []byte) (n int, err error) {
	if s.from < 0 {
		return s.Writer.Write(p)
	}
	if err := s.Flush(); err != nil {
		return 0, err
	}
	for n < len(p) {
		m, err := s.splice(p[n:])
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// splice moves up to as many bytes as buf has, which is used if the file system does not know how to.
func (s *sink) splice(buf []byte) (int, error) {
	for {
		var n int64
		err := error(unix.EINVAL)
		if s.pipe != nil {
			n, err = unix.Splice(s.from, nil, int(s.pipe.Fd()), nil, len(buf), 0)
		}
		if err == unix.EINVAL {
			s.pipe = nil
			var m int
			if m, err = unix.Read(s.from, buf); err == nil {
				_, err = s.Writer.Write(buf[:m])
			}
			n = int64(m)
		}
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, errShorter
		default:
			return int(n), nil
		}
	}
}
