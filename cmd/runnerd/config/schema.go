package config

import (
	"encoding"
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"

	"github.com/runnerd/runnerd/sandbox"
)

// Schema is the JSON Schema of the configuration file, made from its types.
func Schema() []byte {
	r := jsonschema.Reflector{
		FieldNameTag:               "yaml",
		RequiredFromJSONSchemaTags: true,
		Anonymous:                  true,
		DoNotReference:             true,
		Mapper:                     mapped,
		LookupComment: func(t reflect.Type, name string) string {
			if t.Kind() != reflect.Struct {
				return ""
			}
			f, _ := t.FieldByName(name)
			return f.Tag.Get("doc")
		},
	}
	s := r.Reflect(&Config{})
	s.Title = "runnerd's configuration"
	s.ID = "https://runnerd.dev/schema/runnerd.json"
	s.Properties.Set("version", &jsonschema.Schema{Enum: []any{1}, Description: "Version of this format. There is only 1."})
	out, err := json.MarshalIndent(withDefaults(s), "", "  ")
	if err != nil {
		panic(err) // the types are ours
	}
	return append(out, '\n')
}

// mapped are the types that are text, and those that must be one of some words.
func mapped(t reflect.Type) *jsonschema.Schema {
	oneOf := []any{}
	for _, k := range sandbox.Kinds() {
		oneOf = append(oneOf, k)
	}
	switch t {
	case reflect.TypeFor[Size]():
		return &jsonschema.Schema{Type: "", OneOf: []*jsonschema.Schema{{Type: "string", Pattern: `^[0-9]+(\.[0-9]+)?\s*([KMGT](i?B|i)?|kB|[kmgt]|B)?$`}, {Type: "integer", Minimum: "0"}}}
	case reflect.TypeFor[Share]():
		return &jsonschema.Schema{OneOf: []*jsonschema.Schema{{Type: "string", Pattern: `^[0-9]+(\.[0-9]+)?\s*(%|[KMGT](i?B|i)?|kB|[kmgt]|B)?$`}, {Type: "integer", Minimum: "0"}}}
	case reflect.TypeFor[CPU]():
		return &jsonschema.Schema{OneOf: []*jsonschema.Schema{{Type: "string", Pattern: `^([0-9]+m|[0-9]*\.?[0-9]+)$`}, {Type: "number", Minimum: "0"}}}
	case reflect.TypeFor[Duration]():
		return &jsonschema.Schema{Type: "string", Pattern: `^(0|([0-9]+d)?([0-9.]+(ns|us|µs|ms|s|m|h))*)$`}
	case reflect.TypeFor[FileMode]():
		return &jsonschema.Schema{Type: "string", Pattern: `^(0o)?[0-7]{1,4}$`}
	case reflect.TypeFor[sandbox.Kind]():
		return &jsonschema.Schema{Type: "string", Enum: oneOf}
	case reflect.TypeFor[sandbox.Nesting](), reflect.TypeFor[netip.Prefix](), reflect.TypeFor[netip.Addr]():
		return &jsonschema.Schema{Type: "string"}
	}
	return nil
}

// withDefaults writes the defaults into the schema.
func withDefaults(s *jsonschema.Schema) *jsonschema.Schema {
	defaultsOf(s, reflect.ValueOf(Default()).Elem())
	return s
}

func defaultsOf(s *jsonschema.Schema, v reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		p, ok := s.Properties.Get(f.Tag.Get("yaml"))
		if !ok {
			continue
		}
		if enum := f.Tag.Get("enum"); enum != "" {
			for e := range strings.SplitSeq(enum, ",") {
				p.Enum = append(p.Enum, e)
			}
		}
		_, text := v.Field(i).Addr().Interface().(encoding.TextMarshaler)
		switch {
		case v.Field(i).Kind() == reflect.Struct && !text:
			defaultsOf(p, v.Field(i))
		case !v.Field(i).IsZero():
			p.Default = v.Field(i).Interface()
		}
	}
}
