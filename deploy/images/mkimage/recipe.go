package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// recipe is what a Dockerfile says, of the few instructions that the ones here use. ADD and RUN are done
// by build.sh before; their result is the upper directory.
type recipe struct {
	from       string // empty for scratch
	runs       []string
	copies     []copyLine
	env        []string // KEY=VALUE
	workdir    string
	cmd        []string
	entrypoint []string
}

// copyLine is COPY --from=context [--exclude=pattern…] source… dest, in which context is a named build
// context and never the default one.
type copyLine struct {
	text    string
	context string
	exclude []string
	sources []string
	dest    string
}

// readRecipe fails, with the line, on whatever it would have to leave out.
func readRecipe(file string) (recipe, error) {
	var r recipe
	f, err := os.Open(file)
	if err != nil {
		return r, err
	}
	defer f.Close()
	parsed, err := parser.Parse(f)
	if err != nil {
		return r, fmt.Errorf("%s: %w", file, err)
	}
	for _, n := range parsed.AST.Children {
		if err := r.add(n); err != nil {
			return r, fmt.Errorf("%s:%d: %w", file, n.StartLine, err)
		}
	}
	return r, nil
}

func (r *recipe) add(n *parser.Node) error {
	words := values(n.Next)
	name := strings.ToUpper(n.Value)
	if name != "COPY" && name != "RUN" && len(n.Flags) > 0 {
		return fmt.Errorf("%s with %s is not supported", name, n.Flags[0])
	}
	if len(words) == 0 {
		return fmt.Errorf("%s says nothing", name)
	}
	switch name {
	case "FROM":
		if len(words) != 1 || r.from != "" {
			return errors.New("one FROM with one image is supported")
		}
		if words[0] != "scratch" {
			r.from = words[0]
		}
	case "ADD":
	case "RUN":
		r.runs = append(r.runs, strings.Join(words, " "))
	case "COPY":
		return r.addCopy(n, words)
	case "ENV":
		for i := 0; i+2 < len(words); i += 3 { // key, value, separator
			r.env = append(r.env, words[i]+"="+strings.Trim(words[i+1], `"`))
		}
	case "WORKDIR":
		r.workdir = words[0]
	case "CMD":
		r.cmd = words
	case "ENTRYPOINT":
		r.entrypoint = words
	default:
		return fmt.Errorf("%s is not supported", name)
	}
	if (name == "CMD" || name == "ENTRYPOINT") && !n.Attributes["json"] {
		return fmt.Errorf(`%s is supported as a list only: %s ["…"]`, name, name)
	}
	return nil
}

func (r *recipe) addCopy(n *parser.Node, words []string) error {
	if len(words) < 2 {
		return errors.New("COPY needs a source and a destination")
	}
	c := copyLine{text: n.Original, sources: words[:len(words)-1], dest: words[len(words)-1]}
	for _, flag := range n.Flags {
		name, value, _ := strings.Cut(flag, "=")
		switch name {
		case "--from":
			c.context = value
		case "--exclude":
			c.exclude = append(c.exclude, value)
		default:
			return fmt.Errorf("COPY %s is not supported", flag)
		}
	}
	if c.context == "" || !strings.HasPrefix(c.dest, "/") || !strings.HasSuffix(c.dest, "/") {
		return errors.New("COPY is supported with --from=CONTEXT and an absolute destination that ends in a slash")
	}
	r.copies = append(r.copies, c)
	return nil
}

func values(n *parser.Node) []string {
	var vs []string
	for ; n != nil; n = n.Next {
		vs = append(vs, n.Value)
	}
	return vs
}
