package ciyaml

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// place is where a value stands.
type place struct {
	file         string
	line, column int
}

type kind int

const (
	null kind = iota
	boolean
	number
	text
	list
	mapping
	reference // !reference [job, key]
)

func (k kind) String() string {
	return [...]string{"nothing", "a boolean", "a number", "a string", "a list", "a hash", "a !reference"}[k]
}

// node is a value of a file, with its aliases and merge keys resolved. Nodes are shared and never changed.
type node struct {
	kind   kind
	text   string // of a scalar: true or false, a number as Ruby writes it
	raw    string // of a number, as it stands in the file
	items  []*node
	fields []field
	index  map[string]int // of fields by key
	at     place
	size   int // how many nodes there are in it, itself among them
}

type field struct {
	key   string
	at    place // of the key
	value *node
}

func (n *node) get(key string) *node {
	f := n.field(key)
	if f == nil {
		return nil
	}
	return f.value
}

// field finds a key; a value of null counts as none, as in GitLab.
func (n *node) field(key string) *field {
	if n == nil {
		return nil
	}
	i, ok := n.index[key]
	if !ok || n.fields[i].value.kind == null {
		return nil
	}
	return &n.fields[i]
}

func newMapping(at place, fields []field) *node {
	n := &node{kind: mapping, at: at, fields: fields, index: make(map[string]int, len(fields)), size: 1}
	for i, f := range fields {
		n.index[f.key] = i
		n.size = min(n.size+f.value.size, maxNodes+1) // it must not overflow, however often a value is in it
	}
	return n
}

func newList(at place, items []*node) *node {
	n := &node{kind: list, at: at, items: items, size: 1}
	for _, i := range items {
		n.size = min(n.size+i.size, maxNodes+1)
	}
	return n
}

// parseYAML reads the documents of a file. It has one, or a header with inputs before it.
func parseYAML(file string, content []byte) ([]*node, error) {
	d := yaml.NewDecoder(bytes.NewReader(content))
	var docs []*node
	for len(docs) < 3 {
		var doc yaml.Node
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, syntaxError(file, err)
		}
		c := converter{file: file, done: map[*yaml.Node]*node{}, busy: map[*yaml.Node]bool{}}
		n, err := c.convert(&doc, 0)
		if err != nil {
			return nil, err
		}
		docs = append(docs, n)
	}
	return docs, nil
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

func syntaxError(file string, err error) error {
	e := &Error{File: file, Message: "Invalid configuration format: " + err.Error()}
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		e.Message = "Invalid configuration format: " + m[2]
		if m[1] != "" {
			e.Line, _ = strconv.Atoi(m[1])
			e.Column = 1
		}
	}
	return e
}

type converter struct {
	file string
	done map[*yaml.Node]*node // what aliases stand for
	busy map[*yaml.Node]bool  // to find an alias in what it stands for
	keys int                  // of all hashes, with those that they merge
}

func (c *converter) fail(n *yaml.Node, message string) error {
	return &Error{File: c.file, Line: n.Line, Column: n.Column, Message: message}
}

func (c *converter) convert(n *yaml.Node, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, c.fail(n, "The parsed YAML is too big: more than "+strconv.Itoa(maxDepth)+" values in one another")
	}
	at := place{c.file, n.Line, n.Column}
	switch n.Kind {
	case yaml.DocumentNode:
		if len(n.Content) == 0 {
			return &node{kind: null, at: at, size: 1}, nil
		}
		return c.convert(n.Content[0], depth)
	case yaml.AliasNode:
		return c.alias(n, depth)
	case yaml.ScalarNode:
		return c.scalar(n, at)
	}
	var made *node
	if n.Kind == yaml.MappingNode {
		fields, err := c.fields(n, depth)
		if err != nil {
			return nil, err
		}
		made = newMapping(at, fields)
	} else {
		items := make([]*node, len(n.Content))
		for i, item := range n.Content {
			var err error
			if items[i], err = c.convert(item, depth+1); err != nil {
				return nil, err
			}
		}
		made = newList(at, items)
	}
	if made.size > maxNodes {
		return nil, c.fail(n, "The parsed YAML is too big: more than "+strconv.Itoa(maxNodes)+" values, those of its aliases among them")
	}
	switch {
	case n.Tag == "!reference" && made.kind == list:
		made.kind = reference
	case n.Style&yaml.TaggedStyle != 0 && n.Tag != "!!map" && n.Tag != "!!seq":
		return nil, c.fail(n, "unknown tag "+n.Tag+": the only one of GitLab's own is !reference [job, keyword]")
	}
	return made, nil
}

// alias converts what an alias stands for once, however many there are.
func (c *converter) alias(n *yaml.Node, depth int) (*node, error) {
	if made := c.done[n.Alias]; made != nil {
		return made, nil
	}
	if c.busy[n.Alias] {
		return nil, c.fail(n, "the alias *"+n.Value+" is part of what it stands for")
	}
	c.busy[n.Alias] = true
	defer delete(c.busy, n.Alias)
	made, err := c.convert(n.Alias, depth+1)
	if err == nil {
		c.done[n.Alias] = made
	}
	return made, err
}

// fields reads a mapping. Keys of its own come before those that it merges, and the last of the same name counts.
func (c *converter) fields(n *yaml.Node, depth int) ([]field, error) {
	var own []field
	var merged []*node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			return nil, c.fail(key, "a key has to be a string")
		}
		v, err := c.convert(value, depth+1)
		if err != nil {
			return nil, err
		}
		if key.Value == "<<" && key.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) == 0 {
			merged = append(merged, flatten(v)...)
			continue
		}
		own = append(own, field{key.Value, place{c.file, n.Content[i].Line, n.Content[i].Column}, v})
	}
	var all []field
	index := map[string]int{}
	set := func(f field, overwrite bool) {
		i, there := index[f.key]
		switch {
		case !there:
			index[f.key] = len(all)
			all = append(all, f)
		case overwrite:
			all[i] = f
		}
	}
	for _, f := range own {
		set(f, true)
	}
	for _, m := range merged {
		if c.keys += len(m.fields); c.keys > maxNodes {
			return nil, c.fail(n, "The parsed YAML is too big: more than "+strconv.Itoa(maxNodes)+" merged keys")
		}
		if m.kind != mapping {
			return nil, c.fail(n, "<<: merges "+m.kind.String()+", but should merge a hash or a list of hashes")
		}
		for _, f := range m.fields {
			set(f, false)
		}
	}
	return all, nil
}

// What plain scalars are, in the YAML 1.1 that GitLab reads.
var (
	yamlNull  = regexp.MustCompile(`^(~|null|Null|NULL|)$`)
	yamlTrue  = regexp.MustCompile(`^(true|True|TRUE|yes|Yes|YES|on|On|ON)$`)
	yamlFalse = regexp.MustCompile(`^(false|False|FALSE|no|No|NO|off|Off|OFF)$`)
	yamlInt   = regexp.MustCompile(`^[-+]?(0|[1-9][0-9_]*|0[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+)$`)
	yamlFloat = regexp.MustCompile(`^[-+]?([0-9][0-9_]*)?\.[0-9]+([eE][-+]?[0-9]+)?$|^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$`)
)

func (c *converter) scalar(n *yaml.Node, at place) (*node, error) {
	made := &node{kind: text, text: n.Value, raw: n.Value, at: at, size: 1}
	if n.Style&yaml.TaggedStyle != 0 {
		switch n.Tag {
		case "!!str", "!":
			return made, nil
		case "!!int", "!!float", "!!bool", "!!null", "!!binary", "!!timestamp":
		default:
			return nil, c.fail(n, "unknown tag "+n.Tag+": the only one of GitLab's own is !reference [job, keyword]")
		}
	}
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return made, nil
	}
	switch v := n.Value; {
	case yamlNull.MatchString(v):
		made.kind = null
	case yamlTrue.MatchString(v):
		made.kind, made.text = boolean, "true"
	case yamlFalse.MatchString(v):
		made.kind, made.text = boolean, "false"
	case yamlInt.MatchString(v):
		// Without a base, as in Ruby: 010 is 8. What is too long for 64 bits stays what it is.
		if i, err := strconv.ParseInt(strings.TrimPrefix(strings.ReplaceAll(v, "_", ""), "+"), 0, 64); err == nil {
			made.kind, made.text = number, strconv.FormatInt(i, 10)
		}
	case yamlFloat.MatchString(v):
		if f, err := strconv.ParseFloat(strings.ReplaceAll(v, "_", ""), 64); err == nil {
			made.kind, made.text = number, rubyFloat(f)
		}
	}
	return made, nil
}

// rubyFloat writes a number as Ruby's to_s: 1.20 is 1.2, and 2.0 stays 2.0.
func rubyFloat(f float64) string {
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.ContainsAny(s, ".eEnN") {
		s += ".0"
	}
	return s
}

// flatten has the items of a list, and those of the lists in it; what is no list is one item.
func flatten(n *node) []*node {
	if n == nil || n.kind == null {
		return nil
	}
	if n.kind != list {
		return []*node{n}
	}
	var all []*node
	for _, i := range n.items {
		all = append(all, flatten(i)...)
	}
	return all
}
