package ciyaml

// script reads a script: a string, or a list of strings and of lists of them.
func (p *parser) script(n *node, what string) []string {
	if n == nil {
		return nil
	}
	var lines []string
	var read func(n *node, depth int)
	read = func(n *node, depth int) {
		switch {
		case n.kind == list && depth < maxNested:
			for _, i := range n.items {
				read(i, depth+1)
			}
		case n.kind == text:
			lines = append(lines, n.text)
		case n.kind == null: // an empty item of a list
		default:
			hint := ""
			switch n.kind {
			case mapping:
				hint = ": put quotes around a command with a colon and a space in it"
			case boolean, number:
				hint = ": put it in quotes"
			}
			p.fail(n.at, "%s config should be a string or a nested array of strings up to %d levels deep, but has %s in it%s", what, maxNested, n.kind, hint)
		}
	}
	read(n, 0)
	return lines
}
