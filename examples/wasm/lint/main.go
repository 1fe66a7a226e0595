// Command lint is a linter for the text files of a repository, as a WebAssembly module:
//
//	GOOS=wasip1 GOARCH=wasm go build -o lint.wasm ./examples/wasm/lint
//	runnerd run --sandbox container/wasm --module-dir /workspace:ro -- oci:registry.runnerd.internal/tools/lint:1 /workspace
//
// It reports conflict markers, private keys, blanks at the ends of lines and a missing end of the last line, as
// file:line: text, and exits with 1 if there is anything to report.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxFile is the largest file that is looked at, in bytes.
const maxFile = 8 << 20

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: lint DIR")
		os.Exit(2)
	}
	found, err := lint(os.Stdout, os.DirFS(os.Args[1]))
	if err != nil {
		fmt.Fprintln(os.Stderr, "lint:", err)
		os.Exit(2)
	}
	if found > 0 {
		fmt.Fprintf(os.Stderr, "lint: %d problems\n", found)
		os.Exit(1)
	}
}

// lint reports what is wrong with the files of a tree, and how much that is.
func lint(out io.Writer, tree fs.FS) (found int, err error) {
	err = fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules" || d.Name() == "vendor"):
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		if info, err := d.Info(); err != nil || info.Size() > maxFile {
			return err
		}
		text, err := fs.ReadFile(tree, path)
		if err != nil || bytes.IndexByte(text, 0) >= 0 { // not a text
			return err
		}
		for _, problem := range check(path, string(text)) {
			found++
			if _, err := fmt.Fprintf(out, "%s:%s\n", path, problem); err != nil {
				return err
			}
		}
		return nil
	})
	return found, err
}

// check returns what is wrong with one file, as "line: text".
func check(path, text string) (problems []string) {
	number := 0
	report := func(what string) { problems = append(problems, fmt.Sprintf("%d: %s", number, what)) }
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, maxFile+1)
	markdown := filepath.Ext(path) == ".md" // where two blanks break a line
	for lines.Scan() {
		number++
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "<<<<<<< "), strings.HasPrefix(line, ">>>>>>> "):
			report("a conflict that was not resolved")
		case strings.HasPrefix(line, "-----BEGIN ") && strings.HasSuffix(line, "PRIVATE KEY-----"):
			report("a private key")
		case !markdown && strings.TrimRight(line, " \t") != line:
			report("blanks at the end of the line")
		}
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		report("the last line has no end")
	}
	return problems
}
