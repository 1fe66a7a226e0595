package ciyaml

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// expression is what stands after if:, as GitLab evaluates it: a value is a string, a boolean, a pattern or null; &&
// and || give one of their operands, for which only null and false are not true; an empty string is false only when
// it is all that comes out.
type expression struct{ root operand }

// value is null unless set.
type value struct {
	set     bool
	isBool  bool
	text    string // of a boolean: true, or empty for false
	pattern *regexp.Regexp
}

func stringValue(s string) value { return value{set: true, text: s} }

func boolValue(b bool) value {
	if b {
		return value{set: true, isBool: true, text: "true"}
	}
	return value{set: true, isBool: true}
}

// holds is Ruby's truth, present what is neither empty nor false.
func (v value) holds() bool { return v.set && (!v.isBool || v.text != "") }

func (v value) present() bool { return v.set && (v.pattern != nil || strings.TrimSpace(v.text) != "") }

type operand interface {
	evaluate(variables map[string]string) value
}

type constant struct{ value value }

func (c constant) evaluate(map[string]string) value { return c.value }

type variableOperand string

func (v variableOperand) evaluate(variables map[string]string) value {
	text, ok := variables[string(v)]
	return value{set: ok, text: text}
}

type operation struct {
	op          string
	left, right operand // left is nil for !
}

func (o operation) evaluate(variables map[string]string) value {
	if o.op == "!" {
		return boolValue(!o.right.evaluate(variables).present())
	}
	left := o.left.evaluate(variables)
	switch {
	case o.op == "&&" && !left.holds(), o.op == "||" && left.holds():
		return left
	}
	right := o.right.evaluate(variables)
	switch o.op {
	case "==":
		return boolValue(left == right)
	case "!=":
		return boolValue(left != right)
	case "=~":
		return boolValue(right.set && match(left, right))
	case "!~":
		return boolValue(!right.set || !match(left, right))
	}
	return right
}

var slashed = regexp.MustCompile(`^/((?:\\.|[^/\\])+)/([ismU]*)$`)

// match looks for a pattern. A string with slashes is one too, any other string is looked through for the text.
func match(left, right value) bool {
	re := right.pattern
	if re == nil {
		m := slashed.FindStringSubmatch(right.text)
		if m == nil {
			return strings.Contains(right.text, left.text)
		}
		var err error
		if re, err = compile(m[1], m[2]); err != nil {
			return false
		}
	}
	return re.MatchString(left.text)
}

// parseExpression reads an expression by the precedence of its operators: ! before comparing, before &&, before ||.
func parseExpression(s string) (*expression, error) {
	tokens, err := lex(s)
	if err != nil {
		return nil, err
	}
	if len(tokens) == 0 {
		return nil, errors.New("it is empty")
	}
	r := &reader{tokens: tokens}
	root, err := r.binary(0)
	if err != nil {
		return nil, err
	}
	if len(r.tokens) > 0 {
		return nil, fmt.Errorf("an operator is missing before %s", r.tokens[0])
	}
	return &expression{root}, nil
}

func (e *expression) holds(variables map[string]string) bool {
	return e.root.evaluate(variables).present()
}

func (t token) String() string {
	switch v := t.value.(type) {
	case variableOperand:
		return "$" + string(v)
	case constant:
		return fmt.Sprintf("%q", v.value.text)
	}
	return t.op
}

type reader struct{ tokens []token }

var levels = [...][]string{{"||"}, {"&&"}, {"==", "!=", "=~", "!~"}}

func (r *reader) peek() string {
	if len(r.tokens) == 0 {
		return ""
	}
	return r.tokens[0].op
}

func (r *reader) binary(level int) (operand, error) {
	if level == len(levels) {
		return r.unary()
	}
	left, err := r.binary(level + 1)
	for err == nil {
		op := r.peek()
		if !slices.Contains(levels[level], op) {
			return left, nil
		}
		r.tokens = r.tokens[1:]
		var right operand
		if right, err = r.binary(level + 1); err == nil {
			left = operation{op, left, right}
		}
	}
	return nil, err
}

func (r *reader) unary() (operand, error) {
	if len(r.tokens) == 0 {
		return nil, errors.New("a value is missing at its end")
	}
	t := r.tokens[0]
	r.tokens = r.tokens[1:]
	switch t.op {
	case "":
		return t.value, nil
	case "!":
		of, err := r.unary()
		return operation{op: "!", right: of}, err
	case "(":
		in, err := r.binary(0)
		if err != nil {
			return nil, err
		}
		if r.peek() != ")" {
			return nil, errors.New("a parenthesis is not closed")
		}
		r.tokens = r.tokens[1:]
		return in, nil
	}
	return nil, fmt.Errorf("a value is missing before %s", t.op)
}
