package runner

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
)

// MinSecret is the length in bytes under which a secret is not hidden: it would hide half the log.
const MinSecret = 4

// MinSecretLine is the length in bytes under which a line of a secret of several lines is not hidden by
// itself.
const MinSecretLine = 8

// secretForms returns everything that must be hidden for these secrets, sorted, each once: the secrets as
// they are, line by line, and as they look in base64, in a URL and in JSON. Secrets that are too short are
// counted, empty ones are not.
func secretForms(secrets []string) (forms []string, tooShort int) {
	for _, s := range secrets {
		trimmed := strings.TrimSpace(s)
		if trimmed == "" {
			continue
		}
		if len(trimmed) < MinSecret {
			tooShort++
			continue
		}
		forms = append(forms, encodings(trimmed)...)
		if s != trimmed {
			forms = append(forms, encodings(s)...)
		}
		if lines := strings.Split(trimmed, "\n"); len(lines) > 1 {
			forms = append(forms, strings.ReplaceAll(strings.ReplaceAll(trimmed, "\r\n", "\n"), "\n", "\r\n")) // as a terminal shows it
			for _, line := range lines {
				if line = strings.TrimSpace(line); len(line) >= MinSecretLine {
					forms = append(forms, encodings(line)...)
				}
			}
		}
	}
	forms = slices.DeleteFunc(forms, func(f string) bool { return len(f) < MinSecret })
	slices.Sort(forms)
	return slices.Compact(forms), tooShort
}

// encodings returns s as it is and as it looks in other clothes.
func encodings(s string) []string {
	forms := []string{s, url.QueryEscape(s), url.PathEscape(s)}
	for _, escaped := range forms[1:] { // %2f for %2F
		forms = append(forms, lowerPercent(escaped))
	}
	forms = append(forms, jsonForms(s)...)
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		forms = append(forms, base64Forms(enc, s)...)
	}
	slices.Sort(forms)
	return slices.Compact(forms)
}

func lowerPercent(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i:i+3], strings.ToLower(string(b[i:i+3])))
			i += 2
		}
	}
	return string(b)
}

func jsonForms(s string) []string {
	var forms []string
	for _, html := range []bool{false, true} {
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(html)
		if e.Encode(s) == nil {
			text := strings.TrimSpace(b.String())
			forms = append(forms, text[1:len(text)-1])
		}
	}
	return forms
}

// base64Forms returns what of s shows in the base64 of any text that contains s: for each of the three
// offsets the characters that depend on nothing but s, and those of a text that ends with s, without and
// with padding.
func base64Forms(enc *base64.Encoding, s string) []string {
	var forms []string
	for offset := range 3 {
		padded := enc.EncodeToString([]byte("\x00\x00"[:offset] + s))
		first := (8*offset + 5) / 6       // the first character without a bit of what is before s
		sure := 8 * (offset + len(s)) / 6 // the first with a bit of what is after s
		forms = append(forms, padded[first:sure], strings.TrimRight(padded[first:], "="), padded[first:])
	}
	return forms
}
