package ciyaml

import (
	"regexp"
	"strings"
)

var variableReference = regexp.MustCompile(`\$\$|\$\w+|\$\{\w+\}|%\w+%`)

// expand puts values in the place of variables that there are. What would get bigger than a file stays as it is.
func expand(s string, variables map[string]string) string {
	if !strings.ContainsAny(s, "$%") {
		return s
	}
	var b strings.Builder
	from := 0
	for _, m := range variableReference.FindAllStringIndex(s, -1) {
		value, ok := variables[strings.Trim(s[m[0]:m[1]], "${}%")]
		if !ok {
			continue
		}
		if b.Len()+len(value) > maxFile {
			return s
		}
		b.WriteString(s[from:m[0]])
		b.WriteString(value)
		from = m[1]
	}
	b.WriteString(s[from:])
	return b.String()
}

// expandNested expands what the values refer to, too.
func expandNested(s string, variables map[string]string) string {
	for range maxNested {
		expanded := expand(s, variables)
		if expanded == s {
			break
		}
		s = expanded
	}
	return s
}
