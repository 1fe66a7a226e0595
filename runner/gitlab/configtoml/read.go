package configtoml

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// key is one key of the file, with its value.
type key struct {
	line   int
	path   string // with dots between, without numbers: runners.docker.image
	runner int    // the number of its [[runners]], from 1; 0: it is in none
	table  bool   // it is the head of a table
	value  any    // as package toml decodes it
}

// text is the value as text.
func (k key) text() string {
	if s, ok := k.value.(string); ok {
		return s
	}
	return fmt.Sprint(k.value)
}

// name is the key's own, without those of its tables.
func (k key) name() string { return k.path[strings.LastIndex(k.path, ".")+1:] }

func (k key) number() (int64, bool) { n, ok := k.value.(int64); return n, ok }

func (k key) yes() bool { b, ok := k.value.(bool); return ok && b }

// list is a list of texts; a text by itself is a list of one.
func (k key) list() []string {
	if s, ok := k.value.(string); ok {
		return []string{s}
	}
	all, _ := k.value.([]any)
	texts := make([]string, 0, len(all))
	for _, v := range all {
		texts = append(texts, fmt.Sprint(v))
	}
	return texts
}

// read returns the keys of a file in their order. Values are those of the decoder, which holds TOML's rules; where they
// stand, only the parser knows.
func read(text []byte) ([]key, error) {
	var tree map[string]any
	if err := toml.Unmarshal(text, &tree); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, column := at.Position()
			return nil, fmt.Errorf("line %d, column %d: %w", line, column, err)
		}
		return nil, err
	}
	r := reader{tree: tree, counts: map[string]int{}}
	r.parser.Reset(text)
	for r.parser.NextExpression() {
		r.expression(r.parser.Expression())
	}
	return r.keys, r.parser.Error()
}

// reader brings keys, their places and their values together.
type reader struct {
	parser unstable.Parser
	tree   map[string]any
	counts map[string]int // of the tables of arrays so far, by their numbered path
	table  []string       // the table that we are in
	keys   []key
}

func (r *reader) expression(n *unstable.Node) {
	names, line := r.names(n.Key())
	switch n.Kind {
	case unstable.Table:
		r.table = names
		r.add(names, line, true)
	case unstable.ArrayTable:
		r.table = names
		last := len(names) - 1
		r.counts[r.numbered(names[:last])+"\x00"+names[last]]++
		r.add(names, line, true)
	case unstable.KeyValue:
		r.value(append(append([]string{}, r.table...), names...), line, n.Value())
	}
}

// value adds a key, or the keys of an inline table.
func (r *reader) value(names []string, line int, n *unstable.Node) {
	if n.Kind != unstable.InlineTable {
		r.add(names, line, false)
		return
	}
	r.add(names, line, true)
	for it := n.Children(); it.Next(); {
		inner, at := r.names(it.Node().Key())
		r.value(append(append([]string{}, names...), inner...), at, it.Node().Value())
	}
}

// names are the parts of a key, and the line that it is in.
func (r *reader) names(it unstable.Iterator) (names []string, line int) {
	for it.Next() {
		n := it.Node()
		if line == 0 {
			line = r.parser.Shape(n.Raw).Start.Line
		}
		names = append(names, string(n.Data))
	}
	return names, line
}

// add adds a key with its value.
func (r *reader) add(names []string, line int, table bool) {
	k := key{line: line, path: strings.Join(names, "."), table: table}
	if names[0] == "runners" {
		k.runner = r.counts["\x00runners"]
	}
	k.value = r.lookup(names)
	r.keys = append(r.keys, k)
}

// numbered is a path with the number of the table in each array that it leads through.
func (r *reader) numbered(names []string) string {
	path := ""
	for _, name := range names {
		path += "\x00" + name
		if n := r.counts[path]; n > 0 {
			path += fmt.Sprintf("\x00\x00%d", n)
		}
	}
	return path
}

// lookup finds a value in the decoded tree; nil if there is none.
func (r *reader) lookup(names []string) any {
	var at any = r.tree
	path := ""
	for i, name := range names {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[name]
		path += "\x00" + name
		n := r.counts[path]
		if list, ok := at.([]any); ok && i < len(names)-1 {
			if n < 1 || n > len(list) {
				return nil
			}
			at = list[n-1]
		}
		if n > 0 {
			path += fmt.Sprintf("\x00\x00%d", n)
		}
	}
	return at
}
