package archive

import (
	"errors"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
)

// packs is the line after which Command writes an archive.
const packs = "pack\n"

// usage is what Command knows.
var errUsage = errors.New("pack BYTES FILES [format=tar] [level=5] [exclude=GLOB]… [further=stdin] [beneath=yes] -- GLOB…, " +
	"extract BYTES FILES, or unzip BYTES FILES is needed")

// Command is what the sandboxes' init does as "archive …", in a directory:
//
//	pack BYTES FILES [format=tar] [level=5] [exclude=GLOB]… [further=stdin] [beneath=yes] -- GLOB…
//	extract BYTES FILES   a tar of exactly so many bytes
//	unzip BYTES FILES     a zip, of which so many bytes may come
//
// pack first says on its error output what was found, a line each: "path N" for each GLOB, "exclude N", "further N",
// "found N GIT" (1: some in .git); instead of N "! WHY" for what is no pattern. Then comes "pack", and the archive on the
// output. At the end "FILES BYTES SKIPPED GIT", of pack on its error output, of the others on their output. The code is 0
// if all went well, else the error output ends with why. What extract has done is undone if it fails.
func Command(dir string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	sum, report, err := command(dir, args, stdin, stdout, stderr)
	if err != nil {
		_, _ = io.WriteString(stderr, err.Error()+"\n")
		return 1
	}
	git := "0"
	if sum.Git {
		git = "1"
	}
	_, _ = io.WriteString(report, number(sum.Files)+" "+number(sum.Bytes)+" "+number(sum.Skipped)+" "+git+"\n")
	return 0
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

func command(dir string, args []string, stdin io.Reader, stdout, stderr io.Writer) (sum Summary, report io.Writer, err error) {
	if len(args) < 3 {
		return sum, nil, errUsage
	}
	bytes, err1 := strconv.ParseInt(args[1], 10, 64)
	files, err2 := strconv.ParseInt(args[2], 10, 64)
	if err1 != nil || err2 != nil || bytes < 0 || files < 0 {
		return sum, nil, errUsage
	}
	limits := Limits{Bytes: bytes, Entries: files}
	switch args[0] {
	case "pack":
		sum, err = packCommand(dir, args[3:], limits, stdin, stdout, stderr)
		return sum, stderr, err
	case "extract", "unzip":
		root, err := os.OpenRoot(dir)
		if err != nil {
			return sum, nil, err
		}
		defer func() { _ = root.Close() }()
		if args[0] == "unzip" {
			sum, err = unzip(root, dir, stdin, limits)
			return sum, stdout, err
		}
		limits.Bytes = max(bytes, 1)
		sum, err = Extract(root, &whole{r: stdin, left: bytes}, limits, true)
		return sum, stdout, err
	}
	return sum, nil, errUsage
}

func packCommand(dir string, args []string, limits Limits, stdin io.Reader, stdout, stderr io.Writer) (sum Summary, err error) {
	p, s := Packing{Format: Tar, Limits: limits}, Selection{}
	for {
		if len(args) == 0 {
			return sum, errUsage
		}
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			break
		}
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "format":
			p.Format = Format(value)
		case "level":
			if p.Level, err = strconv.Atoi(value); err != nil || p.Level < 0 || p.Level > 9 {
				return sum, errUsage
			}
		case "exclude":
			s.Exclude = append(s.Exclude, value)
		case "further":
			s.Further = stdin
		case "beneath":
			s.Beneath, p.Beneath = true, true
		default:
			return sum, errUsage
		}
	}
	s.Patterns = args
	found, err := Select(dir, s, Limits{Entries: limits.Entries})
	if err == nil {
		err = p.Check(dir, found.Names)
	}
	if err != nil {
		return sum, err
	}
	if _, err := io.WriteString(stderr, found.text()+packs); err != nil {
		return sum, err
	}
	return Pack(stdout, dir, found.Names, p)
}

// text is what Command says of it.
func (f Found) text() string {
	var out strings.Builder
	matches := func(what string, all []Match) {
		for _, m := range all {
			out.WriteString(what)
			if m.Err != nil {
				out.WriteString(" ! " + strings.ReplaceAll(m.Err.Error(), "\n", " ") + "\n")
			} else {
				out.WriteString(" " + number(m.Entries) + "\n")
			}
		}
	}
	matches("path", f.Patterns)
	matches("exclude", f.Excluded)
	out.WriteString("further " + number(f.Further) + "\nfound " + strconv.Itoa(len(f.Names)))
	if f.Git() {
		out.WriteString(" 1\n")
	} else {
		out.WriteString(" 0\n")
	}
	return out.String()
}

// unzip extracts a zip that comes as a stream: it is sought in, and so goes to a file without a name first.
func unzip(root *os.Root, dir string, stdin io.Reader, limits Limits) (Summary, error) {
	f, err := os.CreateTemp(dir, ".runnerd-")
	if err != nil {
		return Summary{}, err
	}
	defer func() { _ = f.Close() }()
	if err := os.Remove(f.Name()); err != nil {
		return Summary{}, err
	}
	in := stdin
	if limits.Bytes > 0 {
		in = io.LimitReader(stdin, limits.Bytes+1)
	}
	size, err := io.Copy(f, in)
	if err != nil {
		return Summary{}, err
	}
	b := budget{Limits: limits}
	if err := b.add(size); err != nil {
		return Summary{}, err
	}
	return ExtractZip(root, f, size, limits, true)
}

// whole is a stream whose end is an error unless it comes after so many bytes: an archive that is cut off between
// two files looks like a complete one.
type whole struct {
	r    io.Reader
	left int64
}

func (w *whole) Read(p []byte) (int, error) {
	n, err := w.r.Read(p[:min(int64(len(p)), max(w.left, 1))])
	if w.left -= int64(n); err == io.EOF && w.left > 0 {
		return n, io.ErrUnexpectedEOF
	}
	if w.left < 0 {
		w.left = math.MinInt64 / 2
		return 0, errors.New("the archive is longer than it was to be")
	}
	return n, err
}
