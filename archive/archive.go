// Package archive packs files (tar, zip, gzip) and extracts them again (tar, zip). Nothing that an archive says leads
// out of the directory that it is extracted into. It is small, because the sandboxes' init holds it too.
package archive

import (
	"errors"
	"strconv"
)

// Limits bound what is packed or extracted. 0 is no limit.
type Limits struct {
	Bytes   int64 // of all files' contents, or of the stream that is packed
	Entries int64 // files, directories and links
	// NoGit has Extract refuse what is named .git or leads into it: git runs hooks and programs that such a
	// directory names, as whoever calls it.
	NoGit bool
}

// Summary says what was packed or extracted.
type Summary struct {
	Files int64 // all that are not directories
	Bytes int64 // of their contents
	// Skipped counts devices, sockets and FIFOs, which no archive keeps.
	Skipped int64
	// Git is that some of what was extracted is in a directory .git at the top.
	Git bool
}

// ErrTooLarge is wrapped by the error of what exceeds its Limits.
var ErrTooLarge = errors.New("too large")

// maxName bounds the names and link targets of entries, in bytes: the kernel's PATH_MAX.
const maxName = 4096

// maxDepth bounds how many directories deep an entry is: each is opened for each that is made in it.
const maxDepth = 256

type tooLarge struct{ what string }

func (e tooLarge) Error() string { return e.what }
func (e tooLarge) Unwrap() error { return ErrTooLarge }

// budget counts against Limits.
type budget struct {
	Limits
	entries, bytes int64
}

func (b *budget) entry() error {
	if b.entries++; b.Entries > 0 && b.entries > b.Entries {
		return b.tooMany()
	}
	return nil
}

func (b *budget) tooMany() error {
	return tooLarge{"more than " + strconv.FormatInt(b.Entries, 10) + " files"}
}

func (b *budget) add(n int64) error {
	if b.bytes += n; b.Bytes > 0 && b.bytes > b.Bytes {
		return tooLarge{"more than " + strconv.FormatInt(b.Bytes, 10) + " bytes"}
	}
	return nil
}
