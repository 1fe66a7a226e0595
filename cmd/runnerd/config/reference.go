package config

import (
	"bytes"
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Reference is the commented configuration file with every option and its default.
func Reference() []byte {
	var b bytes.Buffer
	b.WriteString(`# runnerd's configuration: every option, with its default.
#
# runnerd needs no configuration file; write into yours only what differs from this. It is looked for at
# ` + DefaultPath + ` unless --config names another. Check it with 'runnerd config check FILE', see what
# applies on this machine with 'runnerd config show'. An unknown key is an error, never ignored.
#
# Made by 'runnerd config show --reference'; do not edit.
# yaml-language-server: $schema=runnerd.schema.json
`)
	write(&b, reflect.ValueOf(Default()).Elem(), "", true)
	return b.Bytes()
}

// YAML is the configuration as a file, without comments.
func (c *Config) YAML() []byte {
	var b bytes.Buffer
	write(&b, reflect.ValueOf(c).Elem(), "", false)
	return b.Bytes()
}

func write(b *bytes.Buffer, v reflect.Value, indent string, comments bool) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if comments {
			if indent == "" {
				b.WriteByte('\n')
			}
			comment(b, f.Tag.Get("doc"), indent)
		}
		fmt.Fprintf(b, "%s%s:", indent, f.Tag.Get("yaml"))
		writeValue(b, v.Field(i), indent, comments)
	}
}

func writeValue(b *bytes.Buffer, v reflect.Value, indent string, comments bool) {
	if text, ok := scalarText(v); ok {
		fmt.Fprintf(b, " %s\n", text)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		b.WriteByte('\n')
		write(b, v, indent+"  ", comments)
	case reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			text, ok := scalarText(v.Index(i))
			if !ok {
				text = flow(v.Index(i))
			}
			items[i] = text
		}
		fmt.Fprintf(b, " [%s]\n", strings.Join(items, ", "))
	case reflect.Map:
		if v.Len() == 0 {
			b.WriteString(" {}\n")
			return
		}
		b.WriteByte('\n')
		keys := v.MapKeys()
		slices.SortFunc(keys, func(x, y reflect.Value) int { return strings.Compare(x.String(), y.String()) })
		for _, key := range keys {
			fmt.Fprintf(b, "%s  %s:", indent, quote(key.String()))
			writeValue(b, v.MapIndex(key), indent+"  ", comments)
		}
	}
}

// flow writes a struct on one line.
func flow(v reflect.Value) string {
	var parts []string
	for i := range v.NumField() {
		text, _ := scalarText(v.Field(i))
		parts = append(parts, v.Type().Field(i).Tag.Get("yaml")+": "+text)
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

func scalarText(v reflect.Value) (string, bool) {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, _ := m.MarshalText()
		if v.Type() == reflect.TypeFor[FileMode]() { // would be read as a number by others
			return strconv.Quote(string(text)), true
		}
		return quote(string(text)), true
	}
	switch v.Kind() {
	case reflect.String:
		return quote(v.String()), true
	case reflect.Bool, reflect.Int, reflect.Int64, reflect.Uint32:
		return fmt.Sprint(v.Interface()), true
	}
	return "", false
}

// quote quotes what YAML would not take as plain text.
func quote(s string) string {
	plain := s != "" && strings.Trim(s[:1], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/") == "" &&
		!strings.ContainsAny(s, "#\"'\n\t,{}[]&*!|>%@`") && !strings.Contains(s, ": ") && !strings.HasSuffix(s, ":") && strings.TrimSpace(s) == s
	_, special := map[string]bool{"true": true, "false": true, "null": true, "yes": true, "no": true}[strings.ToLower(s)]
	if plain && !special && utf8.ValidString(s) {
		return s
	}
	return strconv.Quote(s)
}

func comment(b *bytes.Buffer, text, indent string) {
	width := 100 - len(indent)
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			fmt.Fprintf(b, "%s# %s\n", indent, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	if line != "" {
		fmt.Fprintf(b, "%s# %s\n", indent, line)
	}
}

// Keys are the paths of all options, sorted.
func Keys() []string {
	found := map[string]bool{}
	var walk func(t reflect.Type, path string)
	walk = func(t reflect.Type, path string) {
		for i := range t.NumField() {
			f := t.Field(i)
			at := join(path, f.Tag.Get("yaml"))
			found[at] = true
			if f.Type.Kind() == reflect.Struct && !reflect.PointerTo(f.Type).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
				walk(f.Type, at)
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
	return slices.Sorted(maps.Keys(found))
}
