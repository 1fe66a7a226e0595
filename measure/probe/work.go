package probe

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

func workProbes() []Probe {
	return []Probe{
		{Name: "go-build", Class: Work, Unit: "op", Crowds: true, Once: 1, setup: goBuild},
		{Name: "untar", Class: Work, Unit: "op", Crowds: true, Once: 1, setup: untar},
		{Name: "50-execs", Class: Work, Unit: "op", Crowds: true, Once: 1, setup: manyExecs},
	}
}

const (
	goPackages = 10
	// archiveName is a tar file in Args.Tools, archiveFiles how many files are in it, of archiveBytes each.
	archiveName  = "files.tar"
	archiveFiles = 10_000
	archiveBytes = 1024
)

// goBuild builds a program of eleven packages, none of which was built before, with the standard library in the build
// cache, and nothing from the network. Tools, sources, cache and output are the place's, but for the toolchain.
func goBuild(a Args) (func(int) error, func() error, error) {
	if a.Dir == "" || a.Tools == "" {
		return nil, nil, ErrNotHere
	}
	root := filepath.Join(a.Tools, "go")
	tool := filepath.Join(root, "bin", "go")
	if _, err := os.Stat(tool); err != nil {
		return nil, nil, fmt.Errorf("no Go toolchain: %w", err)
	}
	dir := filepath.Join(a.Dir, "go-build") // stays, for its cache
	build := func() error {
		if err := writeModule(dir, time.Now().UnixNano()); err != nil {
			return err
		}
		cmd := exec.Command(tool, "build", "-o", filepath.Join(dir, "program"), ".")
		cmd.Dir = filepath.Join(dir, "src")
		cmd.Env = []string{
			"GOROOT=" + root, "GOCACHE=" + filepath.Join(dir, "cache"), "GOPATH=" + filepath.Join(dir, "path"), "HOME=" + dir, "PATH=/usr/bin:/bin",
			"GOPROXY=off", "GOTOOLCHAIN=local", "GOFLAGS=-mod=mod", "GOTELEMETRY=off", "CGO_ENABLED=0", "GOMAXPROCS=2",
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build: %w: %s", err, bytes.TrimSpace(out[:min(len(out), 1000)]))
		}
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, "program")); err != nil {
		if err := build(); err != nil { // the standard library
			return nil, nil, err
		}
	}
	return func(int) error { return build() }, nothing, nil
}

// writeModule writes sources that were never there before.
func writeModule(dir string, seed int64) error {
	src := filepath.Join(dir, "src")
	errs := []error{os.MkdirAll(src, 0o755), os.WriteFile(filepath.Join(src, "go.mod"), []byte("module probe.internal/work\n\ngo 1.21\n"), 0o644)}
	var imports, calls strings.Builder
	for i := range goPackages {
		name := fmt.Sprintf("p%d", i)
		fmt.Fprintf(&imports, "\t\"probe.internal/work/%s\"\n", name)
		fmt.Fprintf(&calls, "\tfmt.Println(%s.F0(os.Args))\n", name)
		var b strings.Builder
		fmt.Fprintf(&b, "package %s\n\nimport (\n\t\"fmt\"\n\t\"sort\"\n\t\"strings\"\n)\n\nconst seed = %d\n", name, seed+int64(i))
		for f := range 20 {
			fmt.Fprintf(&b, `
func F%d(args []string) string {
	sorted := append([]string{fmt.Sprint(seed + %[1]d)}, args...)
	sort.Slice(sorted, func(i, j int) bool { return len(sorted[i]) < len(sorted[j]) })
	return strings.ToUpper(strings.Join(sorted, ","))
}
`, f)
		}
		errs = append(errs, os.MkdirAll(filepath.Join(src, name), 0o755), os.WriteFile(filepath.Join(src, name, name+".go"), []byte(b.String()), 0o644))
	}
	main := "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n\n" + imports.String() + ")\n\nfunc main() {\n" + calls.String() + "}\n"
	return errors.Join(append(errs, os.WriteFile(filepath.Join(src, "main.go"), []byte(main), 0o644))...)
}

// writeArchive makes the archive that untar extracts.
func writeArchive(tools string) (err error) {
	f, err := os.Create(filepath.Join(tools, archiveName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	content := bytes.Repeat([]byte("0123456789abcdef"), archiveBytes/16)
	for i := range archiveFiles {
		if i%100 == 0 {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("%d/", i/100), Mode: 0o755}); err != nil {
				return err
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("%d/%d", i/100, i), Mode: 0o644, Size: archiveBytes}); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
	return w.Close()
}

// untar extracts 10,000 files in 100 directories.
func untar(a Args) (func(int) error, func() error, error) {
	if a.Tools == "" {
		return nil, nil, ErrNotHere
	}
	dir, remove, err := place(a, "untar")
	if err != nil {
		return nil, nil, err
	}
	content, err := os.ReadFile(filepath.Join(a.Tools, archiveName))
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return func(int) error {
		r := tar.NewReader(bytes.NewReader(content))
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			path := filepath.Join(dir, h.Name) // we wrote the archive
			if h.Typeflag == tar.TypeDir {
				if err := os.Mkdir(path, 0o755); err != nil {
					return err
				}
				continue
			}
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			_, err = io.Copy(f, r)
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
		}
	}, remove, nil
}

const execs = 50

// manyExecs starts a program of a usual size 50 times, one after the other: this one.
func manyExecs(Args) (func(int) error, func() error, error) {
	return func(int) error { return spawn(execs, "/proc/self/exe", "runnerd-probe", "true") }, nothing, nil
}
