package archive

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// zipOf makes a zip of the entries of a tar, as far as there are such in a zip.
func zipOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate, Modified: time.Unix(1_000_000_000, 0)}
		mode, body := fs.FileMode(e.mode), e.body
		switch e.kind {
		case tar.TypeDir:
			mode |= fs.ModeDir
			h.Name = strings.TrimSuffix(h.Name, "/") + "/"
		case tar.TypeSymlink:
			mode, body = fs.ModeSymlink|0o777, e.link
		case tar.TypeLink:
			continue
		case tar.TypeChar:
			mode |= fs.ModeDevice | fs.ModeCharDevice
		case tar.TypeBlock:
			mode |= fs.ModeDevice
		case tar.TypeFifo:
			mode |= fs.ModeNamedPipe
		}
		h.SetMode(mode)
		f, err := w.CreateHeader(h)
		if err == nil && body != "" {
			_, err = io.WriteString(f, body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func (a arena) unzip(t *testing.T, archive []byte, limits Limits, undo bool) (Summary, error) {
	t.Helper()
	root, err := os.OpenRoot(a.root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	return ExtractZip(root, bytes.NewReader(archive), int64(len(archive)), limits, undo)
}

// rawZip writes a zip by hand.
type rawZip struct {
	data, directory bytes.Buffer
	records         int
}

// rawEntry is one of its entries, which may lie about everything.
type rawEntry struct {
	name          string
	flags, method uint16
	crc           uint32
	packed, size  uint32
	external      uint32
	extra         []byte
	offset        uint32
	comment       uint16
}

func little(values ...any) []byte {
	var out bytes.Buffer
	for _, v := range values {
		_ = binary.Write(&out, binary.LittleEndian, v)
	}
	return out.Bytes()
}

func (z *rawZip) local(e rawEntry, body []byte) uint32 {
	at := uint32(z.data.Len())
	z.data.Write(little(uint32(0x04034b50), uint16(20), e.flags, e.method, uint32(0), e.crc, e.packed, e.size, uint16(len(e.name)), uint16(0)))
	z.data.WriteString(e.name)
	z.data.Write(body)
	return at
}

func (z *rawZip) central(e rawEntry) {
	z.records++
	z.directory.Write(little(uint32(0x02014b50), uint16(3<<8|20), uint16(20), e.flags, e.method, uint32(0), e.crc, e.packed, e.size,
		uint16(len(e.name)), uint16(len(e.extra)), e.comment, uint16(0), uint16(0), e.external, e.offset))
	z.directory.WriteString(e.name)
	z.directory.Write(e.extra)
}

func (z *rawZip) stored(name, body string) rawEntry {
	e := rawEntry{name: name, crc: crc32.ChecksumIEEE([]byte(body)), packed: uint32(len(body)), size: uint32(len(body)), external: 0o100644 << 16}
	e.offset = z.local(e, []byte(body))
	return e
}

func (z *rawZip) bytes() []byte {
	out := bytes.Clone(z.data.Bytes())
	out = append(out, z.directory.Bytes()...)
	return append(out, little(uint32(0x06054b50), uint16(0), uint16(0), uint16(z.records), uint16(z.records), uint32(z.directory.Len()), uint32(z.data.Len()), uint16(0))...)
}

// lying is a zip of one file whose directory was changed.
func lying(change func(e *rawEntry)) []byte {
	var z rawZip
	e := z.stored("f", "text")
	change(&e)
	z.central(e)
	return z.bytes()
}

// overlapping has entries that share their bytes: each is a megabyte of zeros, of a kilobyte.
func overlapping(t *testing.T, n int) []byte {
	t.Helper()
	one := zipOf(t, file("f", strings.Repeat("\x00", 1<<20)))
	r, err := zip.NewReader(bytes.NewReader(one), int64(len(one)))
	if err != nil {
		t.Fatal(err)
	}
	f := r.File[0]
	at, _ := f.DataOffset()
	var z rawZip
	e := rawEntry{name: "f", method: zip.Deflate, crc: f.CRC32, packed: uint32(f.CompressedSize64), size: uint32(f.UncompressedSize64), external: 0o100644 << 16}
	e.offset = z.local(e, one[at:at+int64(f.CompressedSize64)])
	for i := range n {
		e.name = fmt.Sprintf("%04d", i)
		z.central(e)
	}
	return z.bytes()
}

// nested is a zip bomb as D. Fifield makes them ("A better zip bomb", 2019): each entry's data has the headers of those
// behind it, quoted in blocks that are not compressed.
func nested(n int) []byte {
	var z rawZip
	var all []rawEntry
	kernel := bytes.Repeat([]byte{0}, 1000)
	final := append(little(byte(1), uint16(len(kernel)), ^uint16(len(kernel))), kernel...)
	tail, plain := final, append([]byte{}, kernel...)
	var locals [][]byte
	for i := n - 1; i >= 0; i-- {
		e := rawEntry{name: fmt.Sprintf("%04d", i), method: zip.Deflate, crc: crc32.ChecksumIEEE(plain), packed: uint32(len(tail)), size: uint32(len(plain)), external: 0o100644 << 16}
		var one rawZip
		one.local(e, nil)
		header := one.data.Bytes()
		locals = append(locals, header)
		all = append(all, e)
		quoted := append(little(byte(0), uint16(len(header)), ^uint16(len(header))), header...)
		tail = append(bytes.Clone(quoted), tail...)
		plain = append(bytes.Clone(header), plain...)
	}
	// From the last local header on, what lies before each is the quote of it.
	body := bytes.Clone(final)
	offsets := make([]int, n)
	for i, header := range locals {
		body = append(bytes.Clone(header), body...)
		for j := range i {
			offsets[j] += len(header)
		}
		if i < n-1 {
			body = append(little(byte(0), uint16(len(header)), ^uint16(len(header))), body...)
			for j := range i + 1 {
				offsets[j] += 5
			}
		}
	}
	z.data.Write(body)
	for i := n - 1; i >= 0; i-- {
		all[i].offset = uint32(offsets[i])
		z.central(all[i])
	}
	return z.bytes()
}

func hostileZips(t *testing.T, base string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for name, entries := range hostileEntries(base) { // what is bad in a tar is bad in a zip
		all["as a tar: "+name] = zipOf(t, entries...)
	}
	zip64 := func(size, packed, offset uint64) []byte { return little(uint16(1), uint16(24), size, packed, offset) }
	good := zipOf(t, file("f", strings.Repeat("text", 1000)))
	var twice rawZip
	twice.central(twice.stored("f", "one"))
	twice.central(twice.stored("f", "two"))
	var many rawZip
	e := many.stored("d/", "")
	for range 30_000 {
		many.central(e)
	}
	var wide rawZip
	for i := range 200 {
		e := wide.stored(fmt.Sprint("f", i), "")
		e.extra = little(uint16(0xcafe), uint16(65000), [65000]byte{})
		wide.central(e)
	}
	for name, archive := range map[string][]byte{
		"empty":               {},
		"not a zip":           bytes.Repeat([]byte("not a zip"), 1000),
		"end alone":           (&rawZip{}).bytes(),
		"truncated":           good[:len(good)-30],
		"truncated directory": append(bytes.Clone(good[:len(good)-60]), good[len(good)-22:]...),
		"no data":             good[len(good)-22-47:],
		"prefix":              append(bytes.Repeat([]byte("#!/bin/sh\n"), 100), good...),
		"names differ":        lying(func(e *rawEntry) { e.name = "../../../outside/secret" }),
		"absolute":            lying(func(e *rawEntry) { e.name = filepath.Join(base, "outside/secret") }),
		"nul":                 lying(func(e *rawEntry) { e.name = "f\x00/../../secret" }),
		"backslash":           lying(func(e *rawEntry) { e.name = `..\..\outside\secret` }),
		"drive":               lying(func(e *rawEntry) { e.name = `C:\secret` }),
		"no name":             lying(func(e *rawEntry) { e.name = "" }),
		"slash":               lying(func(e *rawEntry) { e.name = "/" }),
		"larger":              lying(func(e *rawEntry) { e.size = 1 << 30 }),
		"smaller":             lying(func(e *rawEntry) { e.size = 1 }),
		"packed larger":       lying(func(e *rawEntry) { e.packed = 1 << 30 }),
		"packed most":         lying(func(e *rawEntry) { e.packed, e.size = 0xfffffffe, 0xfffffffe }),
		"packed smaller":      lying(func(e *rawEntry) { e.packed = 1 }),
		"checksum":            lying(func(e *rawEntry) { e.crc++ }),
		"offset":              lying(func(e *rawEntry) { e.offset = 1 << 30 }),
		"offset inside":       lying(func(e *rawEntry) { e.offset = 3 }),
		"method":              lying(func(e *rawEntry) { e.method = 99 }),
		"deflate that is not": lying(func(e *rawEntry) { e.method = zip.Deflate }),
		"encrypted":           lying(func(e *rawEntry) { e.flags = 1 }),
		"setuid":              lying(func(e *rawEntry) { e.external = 0o106755 << 16 }),
		"device":              lying(func(e *rawEntry) { e.external = 0o060666 << 16 }),
		"socket":              lying(func(e *rawEntry) { e.external = 0o140666 << 16 }),
		"unknown kind":        lying(func(e *rawEntry) { e.external = 0o170666 << 16 }),
		"link":                lying(func(e *rawEntry) { e.external = 0o120777 << 16 }),
		"directory with body": lying(func(e *rawEntry) { e.name = "f/" }),
		"zip64 size": lying(func(e *rawEntry) {
			e.size, e.packed, e.offset, e.extra = 1<<32-1, 1<<32-1, 1<<32-1, zip64(1<<62, 4, 0)
		}),
		"zip64 packed": lying(func(e *rawEntry) {
			e.size, e.packed, e.offset, e.extra = 1<<32-1, 1<<32-1, 1<<32-1, zip64(4, 1<<63, 0)
		}),
		"zip64 most": lying(func(e *rawEntry) {
			e.size, e.packed, e.offset, e.extra = 1<<32-1, 1<<32-1, 1<<32-1, zip64(1<<64-1, 1<<64-1, 1<<64-1)
		}),
		"zip64 offset": lying(func(e *rawEntry) {
			e.size, e.packed, e.offset, e.extra = 1<<32-1, 1<<32-1, 1<<32-1, zip64(4, 4, 1<<63-1)
		}),
		"zip64 short":     lying(func(e *rawEntry) { e.size, e.extra = 1<<32-1, little(uint16(1), uint16(2), uint16(0)) }),
		"extra too long":  lying(func(e *rawEntry) { e.extra = little(uint16(1), uint16(60000)) }),
		"comment":         lying(func(e *rawEntry) { e.comment = 60000 }),
		"records":         append(bytes.Clone(good[:len(good)-14]), append(little(uint16(65535), uint16(65535)), good[len(good)-10:]...)...),
		"directory start": append(bytes.Clone(good[:len(good)-6]), little(uint32(1<<31), uint16(0))...),
		"long link":       zipOf(t, link("l", strings.Repeat("../", 5000))),
		"bomb":            zipOf(t, file("zeros", strings.Repeat("\x00", 5<<20))),
		"many":            many.bytes(),
		"wide":            wide.bytes(),
		"overlapping":     overlapping(t, 90),
		"nested":          nested(90),
		"twice":           twice.bytes(),
		"twice a link":    zipOf(t, link("l", "../../outside"), link("l", "../../outside/secret"), file("l", "x")),
		"zip in zip":      zipOf(t, file("f.zip", string(good))),
	} {
		all[name] = archive
	}
	return all
}

func TestHostileZips(t *testing.T) {
	count := len(hostileZips(t, "/"))
	if count < 80 {
		t.Errorf("only %d archives", count)
	}
	fine := map[string]bool{"prefix": true, "twice": true, "zip in zip": true, "end alone": true, "directory with body": true, "twice a link": true}
	for name, archive := range hostileZips(t, "/") {
		t.Run(name, func(t *testing.T) {
			a := newArena(t)
			if tarred, ok := strings.CutPrefix(name, "as a tar: "); ok {
				archive = zipOf(t, hostileEntries(a.base)[tarred]...)
			}
			start := time.Now()
			sum, err := a.unzip(t, archive, Limits{Bytes: 1 << 20, Entries: 100}, true)
			t.Log(sum, err)
			if took := time.Since(start); took > time.Second {
				t.Error("it took ", took)
			}
			if fine[name] && err != nil {
				t.Error("it does no harm")
			}
			a.harmless(t, err, true)
		})
	}
}

// TestZipDefences takes the defences away one by one: what each is for then gets further.
func TestZipDefences(t *testing.T) {
	a, hostile := newArena(t), hostileZips(t, "/")
	if sum, err := a.unzip(t, zipOf(t, file("zeros", strings.Repeat("\x00", 5<<20))), Limits{}, true); err != nil || sum.Bytes != 5<<20 {
		t.Error("a bomb without a limit: ", sum, err)
	}
	r, err := zip.NewReader(bytes.NewReader(overlapping(t, 90)), int64(len(overlapping(t, 90))))
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, f := range r.File {
		body, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, body)
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	if total != 90<<20 {
		t.Error("overlapping entries are ", total)
	}
	quine := nested(90)
	if r, err = zip.NewReader(bytes.NewReader(quine), int64(len(quine))); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.File {
		body, err := f.Open()
		if err == nil {
			_, err = io.Copy(io.Discard, body)
		}
		if err != nil {
			t.Fatal(f.Name, err)
		}
	}
	for name, archive := range map[string][]byte{"overlapping": overlapping(t, 90), "nested": quine} {
		if _, err := a.unzip(t, archive, Limits{}, true); !errors.Is(err, errOverlap) {
			t.Error(name, err)
		}
	}
	for name, want := range map[string]error{"wide": ErrTooLarge, "many": ErrTooLarge, "bomb": ErrTooLarge, "encrypted": errEncrypted, "method": zip.ErrAlgorithm, "checksum": zip.ErrChecksum} {
		if _, err := a.unzip(t, hostile[name], Limits{Bytes: 1 << 20, Entries: 100}, true); !errors.Is(err, want) {
			t.Error(name, err)
		}
	}
}

// FuzzUnzip holds that nothing gets out, whatever the bytes, and that nothing is left of what fails.
func FuzzUnzip(f *testing.F) {
	f.Add([]byte("x"))
	for _, archive := range hostileZips(&testing.T{}, "/nowhere") {
		if len(archive) < 100_000 {
			f.Add(archive)
		}
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		a := newArena(t)
		_, err := a.unzip(t, archive, Limits{Bytes: 1 << 20, Entries: 100}, true)
		a.harmless(t, err, true)
	})
}
