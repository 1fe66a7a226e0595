package gitlab

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"unicode/utf8"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// DefaultTraceLimit is the size of a log in bytes at which no more of it is sent (gitlab-runner's output_limit).
const DefaultTraceLimit = 4 << 20

// spool is a file with the log of a job, exactly as it is sent. It survives the process.
type spool struct {
	file  *os.File
	limit int64

	mu   sync.Mutex
	size int64
	sum  uint32
	full bool
	grew chan struct{} // has room for one
}

// openSpool opens a job's spool, with what it holds. limit is in bytes; 0: none.
func openSpool(name string, limit int64) (*spool, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log that is sent: %w", err)
	}
	s := &spool{file: f, limit: limit, grew: make(chan struct{}, 1)}
	sum := crc32.NewIEEE()
	if s.size, err = io.Copy(sum, f); err != nil {
		return nil, errors.Join(fmt.Errorf("read the log that is sent: %w", err), f.Close())
	}
	s.sum = sum.Sum32()
	return s, nil
}

// Write appends to the log, up to its limit. What comes later is not sent, and it is said so in the log.
func (s *spool) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return len(p), nil
	}
	data := p
	if s.limit > 0 && s.size+int64(len(p)) >= s.limit {
		s.full = true
		data = wholeRunes(p[:max(0, s.limit-s.size)])
		data = fmt.Appendf(data[:len(data):len(data)], "\n\x1b[33;1mJob's log exceeded limit of %d bytes.\n"+
			"Job execution will continue but no more output will be collected.\x1b[0;m\n", s.limit)
	}
	if _, err := s.file.WriteAt(data, s.size); err != nil {
		return 0, fmt.Errorf("write the log that is sent: %w", err)
	}
	s.size += int64(len(data))
	s.sum = crc32.Update(s.sum, crc32.IEEETable, data)
	select {
	case s.grew <- struct{}{}:
	default:
	}
	return len(p), nil
}

// wholeRunes cuts off the beginning of a rune at the end of text.
func wholeRunes(text []byte) []byte {
	for i := 1; i <= min(utf8.UTFMax, len(text)); i++ {
		tail := text[len(text)-i:]
		if utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				return text[:len(text)-i]
			}
			break
		}
	}
	return text
}

// read returns what is at an offset, at most so many bytes; nothing at the end.
func (s *spool) read(offset int64, most int) ([]byte, error) {
	s.mu.Lock()
	size := s.size
	s.mu.Unlock()
	data := make([]byte, min(int64(most), max(0, size-offset)))
	if _, err := s.file.ReadAt(data, offset); err != nil && len(data) > 0 {
		return nil, fmt.Errorf("read the log that is sent: %w", err)
	}
	return data, nil
}

// Size is the log's, in bytes.
func (s *spool) Size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size
}

// output is how the server is told what the whole log is.
func (s *spool) output() spec.Output {
	s.mu.Lock()
	defer s.mu.Unlock()
	return spec.Output{Checksum: fmt.Sprintf("crc32:%08x", s.sum), Bytesize: int(s.size)}
}

// Close closes the file; it stays.
func (s *spool) Close() error { return s.file.Close() }
