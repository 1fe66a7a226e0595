// Package cache keeps the caches of CI jobs, under keys that jobs choose, and the artifacts that they leave. A
// job reads what its scope and the trusted one above it have saved, and writes its own scope's only.
//
// An entry is a stream of bytes, cut where its contents say (FastCDC) into chunks, each kept once a project under
// its SHA-256 and compressed. An index names the chunks; it is written last, and is the entry: what was cut off
// before that has left chunks that nothing names, and they are collected. Chunks are checked when they are read.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/blob/s3blob"

	"github.com/runnerd/runnerd/scope"
)

// Config is what a Store needs.
type Config struct {
	// URL of the bucket: s3://NAME?region=…, or empty for Dir. Credentials come from where AWS's tools have
	// them (environment, ~/.aws, instance).
	URL string
	// Dir is a directory of the daemon's own, made if need be, when there is no URL.
	Dir string
	// MaxEntry is the most that one entry may have, in bytes before compression; 0: 5 GiB.
	MaxEntry int64
	// Keep is how long an entry is kept that nobody reads; 0: 30 days.
	Keep time.Duration
	// Room reports whether there is room for some more on the disk; nil: there always is. It is asked while an entry
	// is saved, every 64 chunks, and its error ends that.
	Room func() error
	Log  *slog.Logger // nil: nothing is logged
}

// Store keeps caches and artifacts. Its methods may be called concurrently.
type Store struct {
	bucket   *blob.Bucket
	dir      string // "" if the bucket is not on this machine
	maxEntry int64
	keep     time.Duration
	room     func() error
	grace    time.Duration // how old what nothing names has to be, to be collected
	workers  int           // of one save or restore
	log      *slog.Logger
	now      func() time.Time

	enc *zstd.Encoder
	dec *zstd.Decoder

	pins pins
	gc   sync.Mutex // one collection at a time

	mu    sync.Mutex
	inUse map[string]int // entries that are being restored, by the path of their index
	uses  map[string]use // of this run, by the path
}

// ErrDenied is wrapped by the error of a job that asked for what its scope may not read or write.
var ErrDenied = errors.New("another scope's cache")

// ErrKey is wrapped by the error of a key that cannot be one.
var ErrKey = errors.New("not a cache key")

// ErrTooLarge is wrapped by the error of an entry that is larger than Config.MaxEntry.
var ErrTooLarge = errors.New("too large")

// maxKey bounds keys, in bytes.
const maxKey = 1024

// Open opens a store.
func Open(ctx context.Context, c Config) (*Store, error) {
	s := &Store{dir: c.Dir, workers: runtime.GOMAXPROCS(0) + 1}
	var err error
	if c.URL == "" {
		s.bucket, err = fileblob.OpenBucket(c.Dir, &fileblob.Options{
			CreateDir: true, DirFileMode: 0o700, NoTempDir: true, Metadata: fileblob.MetadataDontWrite,
		})
	} else {
		s.dir, s.grace, s.workers = "", otherGrace, 16 // most of their time is the network's
		s.bucket, err = openURL(ctx, c.URL)
	}
	if err != nil {
		return nil, fmt.Errorf("open the cache %s%s: %w", c.URL, c.Dir, err)
	}
	return s.with(c)
}

// otherGrace is how old chunks that nothing names have to be in a bucket that others may write to: older than
// any save takes, whose index comes last.
const otherGrace = 24 * time.Hour

func openURL(ctx context.Context, text string) (*blob.Bucket, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	if u.Scheme != s3blob.Scheme {
		return nil, fmt.Errorf("%q is no bucket that this runnerd knows: write s3://NAME?region=REGION, or leave the URL empty for a directory", u.Scheme)
	}
	return (&s3blob.URLOpener{}).OpenBucketURL(ctx, u)
}

// with completes a store that has a bucket.
func (s *Store) with(c Config) (_ *Store, err error) {
	s.maxEntry, s.keep, s.room, s.log, s.now = c.MaxEntry, c.Keep, c.Room, c.Log, time.Now
	if s.maxEntry <= 0 {
		s.maxEntry = 5 << 30
	}
	if s.keep <= 0 {
		s.keep = 30 * 24 * time.Hour
	}
	if s.room == nil {
		s.room = func() error { return nil }
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.inUse, s.uses = map[string]int{}, map[string]use{}
	s.pins.init()
	// The fastest level: what it loses against the default in size it more than wins in time. The
	// checksum would be a second one.
	s.enc, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		return nil, err
	}
	s.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithDecoderMaxMemory(maxChunk), zstd.WithDecodeAllCapLimit(true))
	return s, err
}

// Close closes the store. Nothing may be under way.
func (s *Store) Close() error {
	s.dec.Close()
	return errors.Join(s.enc.Close(), s.bucket.Close())
}

// CheckKey reports whether a key can be one: 1 to 1024 bytes of printable text. Whatever it looks like, such as
// "../x", it is no path. Keys are compared byte by byte.
func CheckKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: it is empty", ErrKey)
	case len(key) > maxKey:
		return fmt.Errorf("%w: it has %d bytes, at most %d are allowed: use a hash of it", ErrKey, len(key), maxKey)
	case !utf8.ValidString(key) || strings.ContainsFunc(key, func(r rune) bool { return unicode.IsControl(r) }):
		return fmt.Errorf("%w: %q has characters that are not text", ErrKey, key)
	}
	return nil
}

// Projects share nothing, not even chunks: from what was "saved" at once a job could tell what another project
// has. The paths of a bucket:
//
//	PROJECT/chunks/AB/ABCDEF…          a chunk, by the SHA-256 of its plain bytes
//	PROJECT/entries/SCOPE/HASH         an index, by the SHA-256 of its key
//	PROJECT/uses/SCOPE/HASH            how often the entry was read
//	PROJECT/artifacts/JOB/HASH         an index, by the SHA-256 of its name
const (
	chunksDir    = "/chunks/"
	entriesDir   = "/entries/"
	usesDir      = "/uses/"
	artifactsDir = "/artifacts/"
)

// projectID is the first element of the paths of a scope.
func projectID(s scope.Scope) string {
	s.Trust = scope.Trusted
	return s.ID()
}

func entryPath(s scope.Scope, key string) string {
	return projectID(s) + entriesDir + s.ID() + "/" + hash(key)
}

func artifactPath(s scope.Scope, job, name string) string {
	return projectID(s) + artifactsDir + job + "/" + hash(name)
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
