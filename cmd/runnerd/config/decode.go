package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Problem is one thing that is wrong in a configuration.
type Problem struct {
	File         string `json:"file,omitempty"`
	Line, Column int    // from 1; 0: not in a file
	Message      string
}

func (p Problem) Error() string {
	where := p.File
	if p.Line > 0 {
		where = fmt.Sprintf("%s:%d:%d", where, p.Line, p.Column)
	}
	if where == "" {
		return p.Message
	}
	return where + ": " + p.Message
}

// Problems are all that is wrong in a configuration, in the order of the file.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// decoder fills a Go value from YAML nodes by its yaml tags, and collects what is wrong.
type decoder struct {
	file     string
	problems Problems
	places   map[string]*token.Position // of what was set, by its path, such as "limits.max.cpu"
}

func (d *decoder) problem(n ast.Node, format string, args ...any) {
	p := Problem{File: d.file, Message: fmt.Sprintf(format, args...)}
	if pos := place(n); pos != nil {
		p.Line, p.Column = pos.Line, pos.Column
	}
	d.problems = append(d.problems, p)
}

func place(n ast.Node) *token.Position {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 && !m.IsFlowStyle {
		return place(m.Values[0].Key)
	}
	if n == nil || n.GetToken() == nil {
		return nil
	}
	return n.GetToken().Position
}

// decode reads one YAML document into out, a pointer to a struct.
func (d *decoder) decode(text []byte, out any) {
	f, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	var syntax *yaml.SyntaxError
	if errors.As(err, &syntax) && syntax.Token != nil {
		pos := syntax.Token.Position
		d.problems = append(d.problems, Problem{d.file, pos.Line, pos.Column, syntax.Message})
		return
	}
	if err != nil {
		d.problems = append(d.problems, Problem{File: d.file, Message: err.Error()})
		return
	}
	docs := slices.DeleteFunc(f.Docs, func(doc *ast.DocumentNode) bool { return doc.Body == nil || doc.Body.Type() == ast.CommentType })
	if len(docs) == 0 {
		return
	}
	if len(docs) > 1 {
		d.problem(docs[1].Body, "a second document: one file holds one configuration")
	}
	d.value(docs[0].Body, reflect.ValueOf(out).Elem(), "")
}

// value sets v from n. A key without a value, which YAML calls null, leaves the default.
func (d *decoder) value(n ast.Node, v reflect.Value, path string) {
	if path != "" {
		d.places[path] = place(n)
	}
	switch n := n.(type) {
	case *ast.NullNode:
		return
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.problem(n, "anchors, aliases and tags are not taken here: write the value out")
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		text, ok := d.scalar(n, path)
		if !ok {
			return
		}
		if err := u.UnmarshalText([]byte(text)); err != nil {
			d.problem(n, "%s: %v", path, strings.TrimPrefix(err.Error(), "netip."))
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, path, func(key ast.Node, name string, value ast.Node) {
			if f, ok := field(v, name); ok {
				d.value(value, f, join(path, name))
				return
			}
			d.problem(key, "unknown key %q%s", join(path, name), suggestion(name, keys(v.Type())))
		})
	case reflect.Map: // replaces the default: what is not listed is not meant
		v.Set(reflect.MakeMap(v.Type()))
		d.mapping(n, path, func(_ ast.Node, name string, value ast.Node) {
			elem := reflect.New(v.Type().Elem()).Elem()
			d.value(value, elem, join(path, name))
			v.SetMapIndex(reflect.ValueOf(name).Convert(v.Type().Key()), elem)
		})
	case reflect.Slice:
		seq, ok := n.(*ast.SequenceNode)
		if !ok {
			d.problem(n, "%s: a list is needed, this is %s", path, what(n))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values)))
		for i, e := range seq.Values {
			d.value(e, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
	default:
		d.plain(n, v, path)
	}
}

// plain sets a string, a number or a truth value.
func (d *decoder) plain(n ast.Node, v reflect.Value, path string) {
	text, ok := d.scalar(n, path)
	if !ok {
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		if n.Type() != ast.BoolType {
			d.problem(n, "%s: true or false is needed, this is %q", path, text)
			return
		}
		v.SetBool(text == "true" || text == "True" || text == "TRUE")
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(strings.ReplaceAll(text, "_", ""), 10, 64)
		if err != nil {
			d.problem(n, "%s: a whole number is needed, this is %q", path, text)
			return
		}
		v.SetInt(i)
	case reflect.Uint32:
		i, err := strconv.ParseUint(strings.ReplaceAll(text, "_", ""), 10, 32)
		if err != nil {
			d.problem(n, "%s: a whole number of 0 to 4294967295 is needed, this is %q", path, text)
			return
		}
		v.SetUint(i)
	default:
		panic("config: no way to read a " + v.Type().String())
	}
}

// scalar is the text of n as it was written, without quotes.
func (d *decoder) scalar(n ast.Node, path string) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	d.problem(n, "%s: a single value is needed, this is %s", path, what(n))
	return "", false
}

func (d *decoder) mapping(n ast.Node, path string, each func(key ast.Node, name string, value ast.Node)) {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		if path == "" {
			path = "the configuration"
		}
		d.problem(n, "%s: keys and values are needed, this is %s", path, what(n))
		return
	}
	seen := map[string]bool{}
	for _, kv := range values {
		var name string
		switch key := kv.Key.(type) {
		case *ast.StringNode:
			name = key.Value
		case *ast.MergeKeyNode:
			d.problem(kv.Key, "anchors, aliases and tags are not taken here: write the value out")
			continue
		default:
			name = kv.Key.GetToken().Value
		}
		if seen[name] {
			d.problem(kv.Key, "%s is set twice", join(path, name))
			continue
		}
		seen[name] = true
		each(kv.Key, name, kv.Value)
	}
}

func what(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	}
	return fmt.Sprintf("%q", n.GetToken().Value)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func field(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("yaml") == name {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func keys(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		names = append(names, t.Field(i).Tag.Get("yaml"))
	}
	return names
}

// suggestion says which of the names was probably meant.
func suggestion(name string, names []string) string {
	best, least := "", 3
	for _, n := range names {
		if d := distance(strings.ToLower(name), n); d < least {
			best, least = n, d
		}
	}
	if best != "" {
		return fmt.Sprintf(": do you mean %q?", best)
	}
	return fmt.Sprintf(": known are %s", strings.Join(names, ", "))
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
