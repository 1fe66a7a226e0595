package ciyaml

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// A token of an expression.
type token struct {
	op    string // ( ) == != =~ !~ && || !; empty: a value
	value operand
}

var (
	lexSpace    = regexp.MustCompile(`^\s+`)
	lexVariable = regexp.MustCompile(`^\$(\w+)`)
	lexString   = regexp.MustCompile(`^(?s:"(.*?)"|'(.*?)')`)
	lexPattern  = regexp.MustCompile(`^/((?:\\.|[^/\\])+)/([ismU]*)`)
	lexWord     = regexp.MustCompile(`^(null|true|false)\b`)
	lexOperator = regexp.MustCompile(`^(==|=~|!=|!~|&&|\|\||!|\(|\))`)
)

// lex cuts an expression into tokens.
func lex(s string) ([]token, error) {
	var tokens []token
	for {
		s = s[len(lexSpace.FindString(s)):]
		if s == "" {
			return tokens, nil
		}
		if len(tokens) >= maxTokens {
			return nil, fmt.Errorf("Too many tokens! An expression may have %d", maxTokens)
		}
		t, length, err := next(s)
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, t)
		s = s[length:]
	}
}

func next(s string) (token, int, error) {
	if m := lexVariable.FindStringSubmatch(s); m != nil {
		return token{value: variableOperand(m[1])}, len(m[0]), nil
	}
	if m := lexString.FindStringSubmatch(s); m != nil {
		return token{value: constant{stringValue(m[1] + m[2])}}, len(m[0]), nil
	}
	if m := lexPattern.FindStringSubmatch(s); m != nil {
		re, err := compile(m[1], m[2])
		if err != nil {
			return token{}, 0, fmt.Errorf("Invalid regular expression! %w", err)
		}
		return token{value: constant{value{pattern: re, set: true}}}, len(m[0]), nil
	}
	if m := lexWord.FindString(s); m != "" {
		v := value{}
		if m != "null" {
			v = boolValue(m == "true")
		}
		return token{value: constant{v}}, len(m), nil
	}
	if m := lexOperator.FindString(s); m != "" {
		return token{op: m}, len(m), nil
	}
	switch {
	case strings.HasPrefix(s, "${"):
		return token{}, 0, errors.New("variables are written as $NAME here, not as ${NAME}")
	case strings.HasPrefix(s, "="):
		return token{}, 0, errors.New("write == to compare")
	case strings.HasPrefix(s, "&"), strings.HasPrefix(s, "|"):
		return token{}, 0, errors.New("write && for and, || for or")
	case strings.HasPrefix(s, "/"):
		return token{}, 0, errors.New("a regular expression stands between two slashes, and slashes in it are written as \\/")
	case strings.HasPrefix(s, `"`), strings.HasPrefix(s, "'"):
		return token{}, 0, errors.New("a string is not closed")
	}
	return token{}, 0, fmt.Errorf("Unknown lexeme found! Near %q: strings need quotes, and variables a $", start(s))
}

// start is the first word of what could not be read.
func start(s string) string {
	word := strings.Fields(s)[0]
	return word[:min(len(word), 40)]
}

// compile makes a pattern with Ruby's flags. GitLab and Go have the same syntax, RE2's.
func compile(pattern, flags string) (*regexp.Regexp, error) {
	if len(pattern) > 1000 {
		return nil, errors.New("it has more than 1000 characters")
	}
	pattern = strings.ReplaceAll(pattern, `\/`, `/`)
	if flags != "" {
		pattern = "(?" + flags + ")" + pattern
	}
	return regexp.Compile(pattern)
}
