package archive

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestSelect(t *testing.T) {
	root := tree(t, "a/x.log", "1", "a/y", "2", "a/sub/z.log", "3", "b.log", "4", "dir/deep/f", "5", "dir/g", "6", ".git/config", "7", ".git/hooks/h", "8",
		".gitignore", "9", "loop", "->.", "new\nline", "n")
	for _, c := range []struct {
		name, patterns, exclude, further string
		names, counts                    string
		git                              bool
	}{
		{name: "directory", patterns: "dir/", names: "dir dir/deep dir/deep/f dir/g", counts: "4"},
		{name: "glob", patterns: "**/*.log", names: "a/sub/z.log a/x.log b.log", counts: "3"},
		{name: "two", patterns: "a/** a/y", names: "a a/sub a/sub/z.log a/x.log a/y", counts: "10 1"}, // each as often as it matches
		{name: "none", patterns: "none *.none a/y/z", counts: "0 0 0"},
		{name: "outside", patterns: "../x /etc ", counts: "! !"},
		{name: "bad", patterns: "a/[ a/y", names: "a/y", counts: "! 1"},
		{name: "exclude", patterns: "a dir", exclude: "**/*.log dir", names: "a a/sub a/y dir/deep dir/deep/f dir/g", counts: "3 3 -2 -1"},
		{name: "exclude below", patterns: "dir", exclude: "dir/deep/**", names: "dir dir/g", counts: "2 -2"},
		{name: "exclude absolute", patterns: "dir", exclude: root + "/dir/g", names: "dir dir/deep dir/deep/f", counts: "3 -1"},
		{name: "exclude outside", patterns: "b.log", exclude: "../** [", names: "b.log", counts: "1 -! -!"},
		{name: "git", patterns: ".git", names: ".git .git/config .git/hooks .git/hooks/h", counts: "4", git: true},
		{name: "not git", patterns: ".gitignore", names: ".gitignore", counts: "1"},
		{name: "further", patterns: "b.log", exclude: "a/*", further: "b.log|a/y|dir/|none|../x|/etc/passwd||new\nline", names: "b.log|dir|new\nline", counts: "1 -1 +3"},
		{name: "unended", further: "b.log", names: "b.log", counts: "+1"},
		{name: "all", patterns: ".", exclude: ".git .git/**", names: ".|.gitignore|a|a/sub|a/sub/z.log|a/x.log|a/y|b.log|dir|dir/deep|dir/deep/f|dir/g|loop|new\nline", counts: "14 -1 -3"},
	} {
		s := Selection{Patterns: strings.Fields(c.patterns), Exclude: strings.Fields(c.exclude)}
		if c.further != "" {
			end := "\x00"
			if c.name == "unended" {
				end = ""
			}
			s.Further = strings.NewReader(strings.ReplaceAll(c.further, "|", "\x00") + end)
		}
		f, err := Select(root, s, Limits{})
		if c.name == "unended" {
			if err == nil {
				t.Error("a name that is cut off was taken")
			}
			continue
		}
		var counts []string
		for _, m := range append(append([]Match{}, f.Patterns...), f.Excluded...) {
			text := fmt.Sprint(m.Entries)
			if m.Err != nil {
				text = "!"
			}
			if len(counts) >= len(f.Patterns) {
				text = "-" + text
			}
			counts = append(counts, text)
		}
		if s.Further != nil {
			counts = append(counts, fmt.Sprint("+", f.Further))
		}
		sep := " "
		if strings.Contains(c.names, "|") {
			sep = "|"
		}
		if got := strings.Join(f.Names, sep); err != nil || got != c.names || strings.Join(counts, " ") != c.counts || f.Git() != c.git {
			t.Errorf("%s: %q %q %v, %v", c.name, got, counts, f.Git(), err)
		}
	}
}

func TestSelectLimits(t *testing.T) {
	var files []string
	for i := range 30 {
		files = append(files, fmt.Sprintf("d/%d/f", i), "")
	}
	root := tree(t, files...)
	for _, c := range []struct {
		patterns, further string
		most              int64
		ok                bool
	}{
		{"d", "", 61, true},
		{"d", "", 60, false},
		{". d d/** **/*", "", 61, true}, // what matches twice is one
		{"**", "", 60, false},
		{"d/1/f", strings.Repeat("d/2/f\x00", 5000), 2, true},
		{"d/1/f", "d/2/f\x00d/3/f\x00", 2, false},
		{"", strings.Repeat("x", 5000) + "\x00", 0, false},
	} {
		_, err := Select(root, Selection{Patterns: strings.Fields(c.patterns), Further: bytes.NewReader([]byte(c.further))}, Limits{Entries: c.most})
		if (err == nil) != c.ok || c.most > 0 && !c.ok && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestBeneath holds that who may read more reads nothing through links that lead out, whether they were there when the
// files were selected or have come since; without Beneath they lead where they lead.
func TestBeneath(t *testing.T) {
	base := tree(t, "secret/key", "top secret", "in/real/f", "fine", "in/inside", "->real", "in/up", "->../secret", "in/late/key", "innocent")
	root := base + "/in"
	if err := os.Symlink(base+"/secret", root+"/abs"); err != nil {
		t.Fatal(err)
	}
	s := Selection{Patterns: strings.Fields("up/key abs/key abs/* inside/f late/key up abs"), Further: strings.NewReader("up/key\x00")}
	for beneath, want := range map[bool]string{true: "abs inside/f late/key up", false: "abs abs/key inside/f late/key up up/key"} {
		s.Beneath, s.Further = beneath, strings.NewReader("up/key\x00")
		found, err := Select(root, s, Limits{})
		if got := strings.Join(found.Names, " "); err != nil || got != want {
			t.Errorf("%v: %s, %v", beneath, got, err)
		}
		if err := os.RemoveAll(root + "/late"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../secret", root+"/late"); err != nil {
			t.Fatal(err)
		}
		for _, format := range []Format{Tar, Zip} {
			var out bytes.Buffer
			if _, err := Pack(&out, root, found.Names, Packing{Format: format, Beneath: beneath}); err != nil {
				t.Error(err)
			}
			if leaks := bytes.Contains(out.Bytes(), []byte("top secret")); leaks == beneath {
				t.Errorf("%s, beneath %v: the secret is in it: %v", format, beneath, leaks)
			}
		}
		if err := errors.Join(os.Remove(root+"/late"), os.Mkdir(root+"/late", 0o755), os.WriteFile(root+"/late/key", nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}
