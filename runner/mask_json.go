package runner

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"unicode/utf8"
)

// JSON hides the secrets in a JSON text that is complete, and keeps it JSON: in strings, and in strings
// that are the base64 of bytes, as encoding/json writes a []byte (a build's log comes so). A text without
// a secret is returned as it is; one that is no JSON is masked as plain text.
func (m *Mask) JSON(text []byte) []byte {
	if at, _, _ := m.find(text, 0); len(m.forms) == 0 || at == len(text) {
		return text
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil || d.More() {
		return []byte(m.String(string(text)))
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(m.value(v)) != nil {
		return []byte(Masked)
	}
	masked := b.Bytes()
	if !bytes.HasSuffix(text, []byte("\n")) {
		masked = bytes.TrimSuffix(masked, []byte("\n"))
	}
	return masked
}

func (m *Mask) value(v any) any {
	switch v := v.(type) {
	case string:
		if data, err := base64.StdEncoding.DecodeString(v); err == nil && len(data) >= MinSecret {
			if clear := m.String(string(data)); clear != string(data) {
				return base64.StdEncoding.EncodeToString([]byte(clear))
			}
			if utf8.Valid(data) { // the base64 of a text without a secret
				return v
			}
		}
		return m.String(v)
	case []any:
		for i := range v {
			v[i] = m.value(v[i])
		}
	case map[string]any:
		masked := make(map[string]any, len(v))
		for k, e := range v {
			masked[m.String(k)] = m.value(e)
		}
		return masked
	}
	return v
}
