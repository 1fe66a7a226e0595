package main

import (
	"errors"
	"io"
	"math"
	"os"
	"runtime/debug"
	"strconv"

	"github.com/runnerd/runnerd/archive"
)

// archiver is what the init does as "archive pack BYTES FILES PATTERN…", which writes a tar of its working
// directory to its output, and as "archive extract BYTES FILES", which extracts one of exactly so many bytes from
// its input. In the sandbox and as the job's user, so that the daemon resolves no path of a job's. It says what
// it has done as "FILES BYTES SKIPPED": as the last line of its error output, or of its output.
func archiver(args []string) (code int) {
	defer func() {
		if p := recover(); p != nil {
			code = 2
			_, _ = os.Stderr.WriteString("archive: panic\n")
		}
	}()
	debug.SetMemoryLimit(64 << 20) // it is the job's memory
	if len(args) < 3 {
		_, _ = os.Stderr.WriteString("archive: pack or extract, BYTES and FILES are needed\n")
		return 2
	}
	bytes, err1 := strconv.ParseInt(args[1], 10, 64)
	files, err2 := strconv.ParseInt(args[2], 10, 64)
	dir, err3 := os.Getwd()
	var sum archive.Summary
	report, err := os.Stderr, errors.Join(err1, err2, err3)
	switch {
	case err != nil:
	case args[0] == "pack":
		sum, err = archive.Pack(os.Stdout, dir, args[3:], archive.Limits{Bytes: bytes, Entries: files})
	case args[0] == "extract":
		report = os.Stdout
		sum, err = extract(dir, bytes, files)
	default:
		err = errors.New("pack or extract")
	}
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	_, _ = report.WriteString(strconv.FormatInt(sum.Files, 10) + " " + strconv.FormatInt(sum.Bytes, 10) + " " + strconv.FormatInt(sum.Skipped, 10) + "\n")
	return 0
}

// extract extracts the standard input, all of it or nothing.
func extract(dir string, size, files int64) (archive.Summary, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return archive.Summary{}, err
	}
	defer func() { _ = root.Close() }()
	in := &whole{left: size}
	return archive.Extract(root, in, archive.Limits{Bytes: max(size, 1), Entries: files}, true)
}

// whole is the standard input, whose end is an error unless it comes after so many bytes: an archive that is cut
// off between two files looks like a complete one.
type whole struct{ left int64 }

func (w *whole) Read(p []byte) (int, error) {
	n, err := os.Stdin.Read(p[:min(int64(len(p)), max(w.left, 1))])
	if w.left -= int64(n); err == io.EOF && w.left > 0 {
		return n, io.ErrUnexpectedEOF
	}
	if w.left < 0 {
		w.left = math.MinInt64 / 2
		return 0, errors.New("the archive is longer than it was to be")
	}
	return n, err
}
