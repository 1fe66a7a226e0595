package archive

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// look is all that there is below a directory: names, modes, contents.
func look(t *testing.T, root string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		all.WriteString(strings.TrimPrefix(name, root) + " " + fi.Mode().String())
		switch fi.Mode().Type() {
		case 0:
			text, _ := os.ReadFile(name)
			all.WriteString(" " + string(text) + fi.ModTime().String())
		case fs.ModeSymlink:
			text, _ := os.Readlink(name)
			all.WriteString("->" + text)
		}
		all.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// TestUndo holds that an extraction that fails leaves all as it was, at whatever entry it fails.
func TestUndo(t *testing.T) {
	entries := []entry{
		dir("d"), file("d/old", "new"), file("d/new", "new"), file("d/old", "twice"), link("d/link", "x"), link("d/file", "y"), file("l", "a file now"),
		link("empty", "d"), dir("file"), file("file/in", "x"), hard("d/hard", "d/new"), dir("d/sub/deep"), file("d/sub/deep/f", "x"), file("other", "x"),
	}
	for n := range entries {
		for _, zipped := range []bool{false, true} {
			root := tree(t, "d/old", "old", "d/file", "f", "d/link", "->old", "l", "->d", "empty/", "", "file", "file", "d/kept", "k")
			before := look(t, root)
			r, err := os.OpenRoot(root)
			if err != nil {
				t.Fatal(err)
			}
			bad := append(append([]entry{}, entries[:n+1]...), file("../out", "x"))
			if zipped {
				archive := zipOf(t, bad...)
				_, err = ExtractZip(r, bytes.NewReader(archive), int64(len(archive)), Limits{}, true)
			} else {
				_, err = Extract(r, bytes.NewReader(pack(t, bad...)), Limits{}, true)
			}
			if err == nil {
				t.Fatal("it did not fail")
			}
			if after := look(t, root); after != before {
				t.Errorf("after entry %d there is\n%s\nand there was\n%s", n, after, before)
			}
			archive := pack(t, entries[:n+1]...)
			if _, err := Extract(r, bytes.NewReader(archive), Limits{}, true); err != nil {
				t.Error(err)
			}
			if after := look(t, root); strings.Contains(after, ".runnerd-") {
				t.Errorf("what was replaced is left: %s", after)
			}
			_ = r.Close()
		}
	}
}
