package runner

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// Frame is one piece of a job's log.
type Frame struct {
	Stream Stream
	Time   time.Time
	Data   []byte // valid until the function it was given to returns
	// LeftOut, when not 0, says that this is the notice in the place of so many bytes that were left out
	// because the log was over its limit; Data says the same for people.
	LeftOut int64
}

// DefaultLogSize is the size in bytes that a job's log may take if nothing else is configured.
const DefaultLogSize = 16 << 20

// MinLogSize is the least size that can be configured.
const MinLogSize = 64 << 10

// ErrNoLog is wrapped by the errors of Read and Remove when there is no log of that job.
var ErrNoLog = errors.New("no log")

// LogStore keeps the logs of jobs in a directory, one file each. A log has a limit: its beginning, half
// of the limit, is kept, and of the rest the end, up to the other half; a notice tells how much is missing
// between. Memory use does not depend on the size of the logs.
//
// Readers may follow a log while it is written. The file can be read after a crash; a frame that was not
// written to its end is left out.
type LogStore struct {
	dir  string
	size int64

	mu   sync.Mutex
	live map[string]*Log
}

// NewLogStore opens the store in dir, which it makes if need be. size is the limit of each log in bytes,
// 0 for DefaultLogSize.
func NewLogStore(dir string, size int64) (*LogStore, error) {
	if size == 0 {
		size = DefaultLogSize
	}
	if size < MinLogSize {
		return nil, fmt.Errorf("log size %d: at least %d bytes are needed", size, MinLogSize)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of logs: %w", err)
	}
	return &LogStore{dir: dir, size: size, live: map[string]*Log{}}, nil
}

const logSuffix = ".log"

func (s *LogStore) path(id string) (string, error) {
	if err := sandbox.CheckID(id); err != nil {
		return "", fmt.Errorf("log: %w", err)
	}
	return filepath.Join(s.dir, id+logSuffix), nil
}

// Open starts a job's log. A log that the job has from an earlier start is replaced.
func (s *LogStore) Open(id string) (*Log, error) {
	path, err := s.path(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[id] != nil {
		return nil, fmt.Errorf("log of job %s is already open", id)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open the log of job %s: %w", id, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of job %s: %w", id, err)
	}
	l := &Log{store: s, id: id, file: f, shape: shapeOf(s.size), grown: make(chan struct{})}
	for i := range l.slots {
		l.slots[i].at = l.shape.slot(i)
	}
	if _, err := f.WriteAt(l.shape.header(), 0); err != nil {
		_ = f.Close()
		_ = os.Remove(path)
		return nil, fmt.Errorf("open the log of job %s: %w", id, err)
	}
	s.live[id] = l
	return l, nil
}

// Live reports whether the job's log is being written.
func (s *LogStore) Live(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id] != nil
}

// Remove removes a job's log. It refuses while the log is being written. Who reads it reads on.
func (s *LogStore) Remove(id string) error {
	path, err := s.path(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[id] != nil {
		return fmt.Errorf("log of job %s is being written", id)
	}
	if err := os.Remove(path); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("job %s: %w", id, ErrNoLog)
	} else if err != nil {
		return fmt.Errorf("remove the log of job %s: %w", id, err)
	}
	return nil
}

// Sweep removes the logs that were last written more than age ago, and then the oldest until all of them
// together take no more than total bytes of disk. 0 means no such limit. Logs that are being written stay.
// It returns the ids of the jobs whose logs it removed.
func (s *LogStore) Sweep(ctx context.Context, age time.Duration, total int64) (removed []string, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("sweep the logs: %w", err)
	}
	type logFile struct {
		id   string
		when time.Time
		size int64
	}
	var files []logFile
	var sum int64
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), logSuffix)
		info, err := e.Info()
		if !ok || err != nil {
			continue
		}
		files = append(files, logFile{id, info.ModTime(), diskSize(info)})
		sum += diskSize(info)
	}
	slices.SortFunc(files, func(a, b logFile) int { return a.when.Compare(b.when) })
	var errs []error
	for _, f := range files {
		if ctx.Err() != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		old := age > 0 && time.Since(f.when) > age
		if !old && (total <= 0 || sum <= total) {
			break
		}
		if s.Live(f.id) {
			continue
		}
		if err := s.Remove(f.id); err != nil {
			errs = append(errs, err)
			continue
		}
		sum -= f.size
		removed = append(removed, f.id)
	}
	return removed, errors.Join(errs...)
}

// Log is the log of one job, being written. Its methods may be called from several goroutines.
type Log struct {
	store *LogStore
	id    string
	file  *os.File
	shape logShape

	mu       sync.Mutex
	written  int64 // bytes of data so far, those left out included
	head     int64 // where the head's next frame goes, relative to the head
	headDone bool
	slots    [tailSlots]slot
	cur      int // the slot being written, when headDone
	closed   bool
	waited   bool          // someone waits for grown
	grown    chan struct{} // closed when there is more
	buf      []byte
}

// slot is one part of the ring that holds the tail.
type slot struct {
	at   int64  // in the file
	gen  uint32 // which filling this is; 0: never used
	used int64
}

// Stream returns the writer of one stream. Each Write returns when the bytes are in the file (not when
// they are on the disk). What is written to Progress stays in one piece, or is left out as a whole if it
// is larger than a sixteenth of the log's limit.
func (l *Log) Stream(s Stream) io.Writer { return logWriter{l, s} }

type logWriter struct {
	log    *Log
	stream Stream
}

func (w logWriter) Write(p []byte) (int, error) { return w.log.write(w.stream, p) }

func (l *Log) write(s Stream, p []byte) (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, fmt.Errorf("log of job %s: %w", l.id, fs.ErrClosed)
	}
	now := time.Now()
	for n < len(p) && err == nil {
		var k int
		k, err = l.frame(s, now, p[n:])
		n += k
	}
	if l.waited {
		close(l.grown)
		l.grown, l.waited = make(chan struct{}), false
	}
	if err != nil {
		err = fmt.Errorf("write the log of job %s: %w", l.id, err)
	}
	return n, err
}

// frame writes the first frame of p and returns how much of p is done with.
func (l *Log) frame(s Stream, now time.Time, p []byte) (int, error) {
	whole := s == Progress
	if whole && int64(len(p)) > l.shape.slotSize-frameHeader {
		l.written += int64(len(p)) // readers see from the next frame's offset that something is missing
		return len(p), nil
	}
	if !l.headDone {
		room := l.shape.headSize - l.head - frameHeader
		if k := min(int64(len(p)), room, maxFrame); k > 0 && (!whole || int64(len(p)) <= room) {
			if whole {
				k = int64(len(p))
			}
			if err := l.put(headerSize+l.head, 0, s, now, p[:k]); err != nil {
				return 0, err
			}
			l.head += frameHeader + k
			return int(k), nil
		}
		l.headDone = true
		l.slots[0].gen = 1
	}
	c := &l.slots[l.cur]
	room := l.shape.slotSize - c.used - frameHeader
	k := min(int64(len(p)), maxFrame)
	if whole {
		k = int64(len(p))
	}
	if k > room {
		if whole || room < 1 {
			l.cur = (l.cur + 1) % tailSlots
			next := &l.slots[l.cur]
			next.gen, next.used = c.gen+1, 0
			c = next
		} else {
			k = room
		}
	}
	if err := l.put(c.at+c.used, c.gen, s, now, p[:k]); err != nil {
		return 0, err
	}
	c.used += frameHeader + k
	return int(k), nil
}

func (l *Log) put(at int64, gen uint32, s Stream, now time.Time, p []byte) error {
	l.buf = appendFrame(l.buf[:0], gen, s, now, l.written, p)
	if _, err := l.file.WriteAt(l.buf, at); err != nil {
		return err
	}
	l.written += int64(len(p))
	if cap(l.buf) > 2*maxFrame {
		l.buf = nil
	}
	return nil
}

// Close ends the log: those who follow it come to its end. It is safe to call twice.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.grown)
	l.mu.Unlock()

	l.store.mu.Lock()
	delete(l.store.live, l.id)
	l.store.mu.Unlock()
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("close the log of job %s: %w", l.id, err)
	}
	return nil
}

// The file: a header, the head's frames, and tailSlots parts of a ring, each with frames of one
// generation. A frame is a header of frameHeader bytes, little-endian, and the data.
const (
	logMagic    = "runnerd log 1\n\x00\x00"
	headerSize  = 64
	tailSlots   = 8
	frameHeader = 4 + 4 + 4 + 1 + 8 + 8 // crc32c of the rest, generation, length, stream, unix-nano, offset of the data
	maxFrame    = 32 << 10              // of all streams but Progress
)

type logShape struct{ headSize, slotSize int64 }

func shapeOf(size int64) logShape {
	return logShape{headSize: size / 2, slotSize: size / 2 / tailSlots}
}

func (s logShape) slot(i int) int64 { return headerSize + s.headSize + int64(i)*s.slotSize }

func (s logShape) header() []byte {
	h := make([]byte, headerSize)
	copy(h, logMagic)
	binary.LittleEndian.PutUint64(h[16:], uint64(s.headSize))
	binary.LittleEndian.PutUint64(h[24:], uint64(s.slotSize))
	return h
}

func readShape(f io.ReaderAt) (logShape, error) {
	h := make([]byte, headerSize)
	if _, err := f.ReadAt(h, 0); err != nil || string(h[:len(logMagic)]) != logMagic {
		return logShape{}, errors.New("the file is not a log")
	}
	s := logShape{int64(binary.LittleEndian.Uint64(h[16:])), int64(binary.LittleEndian.Uint64(h[24:]))}
	if s.headSize < 0 || s.slotSize <= frameHeader || s.headSize > 1<<50 || s.slotSize > 1<<31 {
		return logShape{}, errors.New("the file is not a log: bad header")
	}
	return s, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendFrame(b []byte, gen uint32, s Stream, now time.Time, offset int64, p []byte) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, gen)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p)))
	b = append(b, byte(s))
	b = binary.LittleEndian.AppendUint64(b, uint64(now.UnixNano()))
	b = binary.LittleEndian.AppendUint64(b, uint64(offset))
	b = append(b, p...)
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return b
}
