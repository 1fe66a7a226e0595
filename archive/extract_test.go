package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// entry is one of a hostile archive.
type entry struct {
	name, link, body string
	kind             byte
	mode             int64
	pax              map[string]string
}

func file(name, body string) entry {
	return entry{name: name, body: body, kind: tar.TypeReg, mode: 0o644}
}
func dir(name string) entry      { return entry{name: name, kind: tar.TypeDir, mode: 0o755} }
func link(name, to string) entry { return entry{name: name, link: to, kind: tar.TypeSymlink} }
func hard(name, to string) entry { return entry{name: name, link: to, kind: tar.TypeLink} }

func pack(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.body)), PAXRecords: e.pax}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// raw is a header that no writer would write, with the body's blocks.
func raw(name, link string, kind byte, size, body string) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], size)
	copy(h[136:], "00000000000\x00")
	h[156] = kind
	copy(h[157:], link)
	copy(h[257:], "ustar\x0000")
	copy(h[148:], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	out := append(h, body...)
	return append(out, make([]byte, (512-len(out)%512)%512)...)
}

// arena is a directory with a root to extract into, and all around it what must stay as it is.
type arena struct {
	base, root string
	before     string
}

func newArena(t *testing.T) arena {
	t.Helper()
	base := t.TempDir()
	a := arena{base: base, root: filepath.Join(base, "a", "root")}
	for _, d := range []string{a.root, filepath.Join(base, "outside")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"outside/secret", "a/secret", "secret"} {
		if err := os.WriteFile(filepath.Join(base, f), []byte("untouched"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a.before = a.outside(t)
	return a
}

// outside is all that there is outside of the root: names, types, modes, links' counts and contents.
func (a arena) outside(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(a.base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == a.root {
			return fs.SkipDir
		}
		fi, err := os.Lstat(path)
		if err != nil {
			return err
		}
		fmt.Fprintln(&all, path, fi.Mode(), stat(fi).Nlink)
		if fi.Mode().IsRegular() {
			text, err := os.ReadFile(path)
			fmt.Fprintln(&all, string(text), fi.ModTime(), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

func (a arena) extract(t *testing.T, archive []byte, limits Limits, undo bool) (Summary, error) {
	t.Helper()
	root, err := os.OpenRoot(a.root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	return Extract(root, bytes.NewReader(archive), limits, undo)
}

// harmless holds that an extraction has changed nothing outside, made nothing that it must not, and left nothing if it
// has failed with undo.
func (a arena) harmless(t *testing.T, err error, undo bool) {
	t.Helper()
	if after := a.outside(t); after != a.before {
		t.Errorf("outside of the root there is now\n%s\nbefore\n%s", after, a.before)
	}
	for _, f := range []string{"/etc/runnerd-was-here", "runnerd-was-here"} {
		if _, err := os.Lstat(f); err == nil {
			t.Errorf("%s was written", f)
		}
	}
	left := 0
	_ = filepath.WalkDir(a.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == a.root {
			return nil
		}
		left++
		if fi, err := d.Info(); err == nil && fi.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky|fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
			t.Errorf("%s is %s", path, fi.Mode())
		}
		return nil
	})
	if err != nil && undo && left > 0 {
		t.Errorf("%d files are left of what has failed", left)
	}
}

// hostileEntries are those of archives that try to get out, or to fill something up. Each is refused or does no harm.
func hostileEntries(base string) map[string][]entry {
	out, abs := "../../outside", filepath.Join(base, "outside")
	device := func(kind byte) []entry {
		return []entry{{name: "node", kind: kind, mode: 0o666}, file("node/x", "x")}
	}
	return map[string][]entry{
		"dot dot":             {file("../secret", "x")},
		"dot dot deep":        {file("a/b/../../../secret", "x")},
		"dot dot dir":         {dir("..")},
		"dot dot dir mode":    {entry{name: "../", kind: tar.TypeDir, mode: 0}},
		"dot dot link":        {link("../link", "x")},
		"absolute":            {file(abs+"/secret", "x")},
		"absolute twice":      {file("//"+abs+"/secret", "x")},
		"root":                {dir("/")},
		"dot":                 {entry{name: ".", kind: tar.TypeDir, mode: 0}, entry{name: "./", kind: tar.TypeDir, mode: 0}},
		"dot file":            {file(".", "x")},
		"dot link":            {link(".", abs)},
		"backslash":           {file(`..\..\outside\secret`, "x")},
		"link dir":            {link("l", out), file("l/secret", "x")},
		"link dir absolute":   {link("l", abs), file("l/secret", "x")},
		"link dir new":        {link("l", out), file("l/new", "x")},
		"link dir mkdir":      {link("l", out), dir("l/new")},
		"link dir is dir":     {link("l", out), dir("l"), file("l/new", "x")},
		"link dir mode":       {link("l", out), entry{name: "l", kind: tar.TypeDir, mode: 0}},
		"link dir mode after": {entry{name: "l", kind: tar.TypeDir, mode: 0o700}, link("l", out)},
		"link chain":          {link("a", "b"), link("b", "c"), link("c", out), file("a/secret", "x")},
		"link through dir":    {dir("d"), link("d/l", "../../../outside"), file("d/l/secret", "x")},
		"link up and in":      {link("l", ".."), file("l/secret", "x")},
		"link to itself":      {link("l", "l"), file("l/x", "x")},
		"link loop":           {link("a", "b"), link("b", "a"), file("a/x", "x")},
		"link to etc":         {link("etc", "/etc"), file("etc/runnerd-was-here", "x")},
		"link to proc":        {link("l", "/proc/self/cwd"), file("l/runnerd-was-here", "x")},
		"link file":           {link("l", out+"/secret"), file("l", "x")},
		"link file absolute":  {link("l", abs+"/secret"), file("l", "x")},
		"link then hard":      {link("l", out+"/secret"), hard("h", "l"), file("h", "x")},
		"link then hard dir":  {link("l", out), hard("h", "l/secret"), file("h", "x")},
		"link in link":        {link("l", out), link("l/m", "x")},
		"link in link hard":   {file("f", "x"), link("l", out), hard("l/m", "f")},
		"link long":           {link("l", strings.Repeat("../", 1000)+"etc")},
		"hard up":             {hard("h", out+"/secret"), file("h", "x")},
		"hard absolute":       {hard("h", abs+"/secret"), file("h", "x")},
		"hard up clean":       {hard("h", "x/../../secret")},
		"hard to dir":         {dir("d"), hard("h", "d")},
		"hard to root":        {hard("h", ".")},
		"hard to itself":      {file("f", "x"), hard("f", "f")},
		"hard to nothing":     {hard("h", "")},
		"file over dir":       {dir("d"), file("d/x", "x"), file("d", "x")},
		"dir over file":       {file("d", "x"), file("d/x", "x")},
		"dir over link":       {link("d", out), dir("d"), file("d/new", "x")},
		"held dir replaced":   {file("d/x", "x"), link("d/x", out), file("d/x/secret", "x")},
		"empty dir replaced":  {dir("d"), link("d", out), file("d/secret", "x"), entry{name: "d", kind: tar.TypeDir, mode: 0}},
		"case":                {link("L", out), file("l/secret", "x"), file("L/secret", "x")},
		"unicode":             {link("\u00e9", out), file("e\u0301/secret", "x")},
		"setuid":              {entry{name: "s", body: "x", kind: tar.TypeReg, mode: 0o6755}, entry{name: "d", kind: tar.TypeDir, mode: 0o7777}},
		"char device":         device(tar.TypeChar),
		"block device":        device(tar.TypeBlock),
		"fifo":                device(tar.TypeFifo),
		"contiguous":          {entry{name: "c", kind: tar.TypeCont, mode: 0o644}},
		"long path":           {file(strings.Repeat("d/", 2500)+"x", "x")},
		"long component":      {file(strings.Repeat("d", 5000), "x")},
		"deep":                {file(strings.Repeat("d/", 1500)+"x", "x")},
	}
}

// hostile are such archives as tars, and tars that no writer would write.
func hostile(t *testing.T, base string) map[string][]byte {
	all := map[string][]byte{
		"unknown kind":          raw("../secret", "", 'Q', "00000000000\x00", ""),
		"nul in name":           raw("a\x00/../../secret", "", '0', "00000000001\x00", "x"),
		"nul in long name":      append(raw("././@LongLink", "", 'L', "00000000017\x00", "a\x00../../secret\x00"), raw("x", "", '0', "00000000001\x00", "x")...),
		"long name up":          append(raw("././@LongLink", "", 'L', "00000000015\x00", "../../secret\x00"), raw("x", "", '0', "00000000001\x00", "x")...),
		"long link up":          append(raw("././@LongLink", "", 'K', "00000000015\x00", "../../secret\x00"), raw("x", "", '1', "00000000000\x00", "")...),
		"no name":               raw("", "", '0', "00000000001\x00", "x"),
		"negative size":         raw("f", "", '0', "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "x"),
		"huge size":             raw("f", "", '0', "77777777777\x00", "x"),
		"huger size":            raw("f", "", '0', "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff", "x"),
		"bad size":              raw("f", "", '0', "zzzzzzzzzzz\x00", "x"),
		"bad checksum":          bytes.Replace(raw("f", "", '0', "00000000001\x00", "x"), []byte("0000644"), []byte("0000777"), 1),
		"truncated":             pack(t, file("f", strings.Repeat("x", 4096)))[:2048],
		"truncated header":      pack(t, file("f", "x"))[:100],
		"not a tar":             bytes.Repeat([]byte("not a tar "), 1000),
		"endless links":         bytes.Repeat(raw("././@LongLink", "", 'L', "00000000002\x00", "a\x00"), 1000),
		"pax path":              pack(t, entry{name: "x", kind: tar.TypeReg, pax: map[string]string{"VENDOR.x": strings.Repeat("x", 100000)}}),
		"pax sparse":            paxSparse("1152921504606846976", "1152921504606846976,0"),
		"pax sparse negative":   paxSparse("1000", "-1,-1"),
		"time":                  pack(t, entry{name: "f", kind: tar.TypeReg, body: "x", pax: map[string]string{"mtime": "99999999999999"}}),
		"one byte after header": append(raw("f", "", '0', "00000001000\x00", ""), 'x'),
	}
	for name, entries := range hostileEntries(base) {
		all[name] = pack(t, entries...)
	}
	return all
}

// paxSparse is a file of one byte or less that says it is larger (GNU tar, "PAX sparse format 0.1").
func paxSparse(size, sparse string) []byte {
	var records strings.Builder
	for _, r := range [][2]string{{"GNU.sparse.major", "0"}, {"GNU.sparse.minor", "1"}, {"GNU.sparse.name", "f"}, {"GNU.sparse.size", size}, {"GNU.sparse.numblocks", "1"}, {"GNU.sparse.map", sparse}} {
		line := fmt.Sprintf(" %s=%s\n", r[0], r[1])
		n := len(line) + 2
		if n >= 100 {
			n++
		}
		fmt.Fprintf(&records, "%d%s", n, line)
	}
	header := raw("x", "", 'x', fmt.Sprintf("%011o\x00", records.Len()), records.String())
	return append(header, raw("x", "", '0', "00000000000\x00", "")...)
}

func TestHostileArchives(t *testing.T) {
	count := len(hostile(t, "/"))
	if count < 60 {
		t.Errorf("only %d archives", count)
	}
	for _, undo := range []bool{false, true} {
		for name := range hostile(t, "/") {
			t.Run(fmt.Sprint(name, " ", undo), func(t *testing.T) {
				a := newArena(t)
				start := time.Now()
				_, err := a.extract(t, hostile(t, a.base)[name], Limits{Bytes: 1 << 20, Entries: 100}, undo)
				t.Log(err)
				if took := time.Since(start); took > time.Second {
					t.Error("it took ", took)
				}
				a.harmless(t, err, undo)
			})
		}
	}
}

// TestWithoutRoot shows that the archives are dangerous: extracted as a naive program does it, they get out.
func TestWithoutRoot(t *testing.T) {
	escaped := 0
	for name := range hostile(t, "/") {
		a := newArena(t)
		r := tar.NewReader(bytes.NewReader(hostile(t, a.base)[name]))
		for {
			h, err := r.Next()
			if err != nil {
				break
			}
			to := filepath.Join(a.root, h.Name)
			if filepath.IsAbs(h.Name) {
				to = h.Name
			}
			if !strings.HasPrefix(to, a.base) || strings.HasPrefix(h.Linkname, "/etc") || strings.HasPrefix(h.Linkname, "/proc") {
				break // not of this test
			}
			switch h.Typeflag {
			case tar.TypeDir:
				_ = os.MkdirAll(to, 0o755)
				_ = os.Chmod(to, fs.FileMode(h.Mode)|0o700)
			case tar.TypeSymlink:
				_ = os.Symlink(h.Linkname, to)
			case tar.TypeLink:
				_ = os.Link(filepath.Join(a.root, h.Linkname), to)
			case tar.TypeReg:
				if f, err := os.Create(to); err == nil {
					_, _ = io.CopyN(f, r, 10)
					_ = f.Close()
				}
			}
		}
		if a.outside(t) != a.before {
			escaped++
		}
	}
	if escaped < 12 {
		t.Errorf("only %d archives get out of a naive program", escaped)
	}
	t.Log(escaped, "archives got out")
}

func TestLimits(t *testing.T) {
	var many []entry
	for i := range 200 {
		many = append(many, file(fmt.Sprint("f", i), "0123456789"))
	}
	archive := pack(t, many...)
	for _, c := range []struct {
		limits Limits
		ok     bool
	}{{Limits{}, true}, {Limits{Bytes: 2000, Entries: 200}, true}, {Limits{Bytes: 1999}, false}, {Limits{Entries: 199}, false}} {
		a := newArena(t)
		sum, err := a.extract(t, archive, c.limits, true)
		if (err == nil) != c.ok || !c.ok && !errors.Is(err, ErrTooLarge) || c.ok && (sum.Files != 200 || sum.Bytes != 2000) {
			t.Errorf("%+v: %+v, %v", c.limits, sum, err)
		}
		if names, _ := os.ReadDir(a.root); !c.ok && len(names) > 0 {
			t.Errorf("%+v: %d files are left", c.limits, len(names))
		}
	}
}

// TestMillion extracts an archive of a million entries with a limit of fewer.
func TestMillion(t *testing.T) {
	block := raw("d/", "", '5', "00000000000\x00", "")
	a := newArena(t)
	root, err := os.OpenRoot(a.root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	sum, err := Extract(root, &repeated{block: block, n: 1_000_000}, Limits{Entries: 10_000}, true)
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("%+v, %v", sum, err)
	}
}

type repeated struct {
	block []byte
	n, at int
}

func (r *repeated) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.block[r.at:])
	if r.at += n; r.at == len(r.block) {
		r.at, r.n = 0, r.n-1
	}
	return n, nil
}

// TestReplaces holds that what is there is replaced, and that read-only directories can be filled.
func TestReplaces(t *testing.T) {
	a := newArena(t)
	archive := pack(t, entry{name: "d", kind: tar.TypeDir, mode: 0o555}, file("d/x", "one"), link("d/l", "x"), hard("d/h", "d/x"))
	for range 2 {
		sum, err := a.extract(t, archive, Limits{}, false)
		if err != nil || sum.Files != 3 {
			t.Fatal(sum, err)
		}
	}
	for name, want := range map[string]string{"d/x": "one", "d/l": "one", "d/h": "one"} {
		if got, err := os.ReadFile(filepath.Join(a.root, name)); string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// FuzzExtract holds that nothing gets out, whatever the bytes.
func FuzzExtract(f *testing.F) {
	f.Add([]byte("x"))
	t := &testing.T{}
	for _, archive := range hostile(t, "/nowhere") {
		f.Add(archive)
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		a := newArena(t)
		_, _ = a.extract(t, archive, Limits{Bytes: 1 << 20, Entries: 100}, len(archive)%2 == 0)
		if after := a.outside(t); after != a.before {
			t.Errorf("outside of the root there is now\n%s", after)
		}
	})
}
