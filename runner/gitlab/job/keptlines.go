package job

import "fmt"

// What gitlab-runner writes in which colour (helpers/ansi_colors.go, log/runner_formatter.go, shells/bash.go).
const (
	green, yellow, red, reset = "\x1b[32;1m", "\x1b[0;33m", "\x1b[31;1m", "\x1b[0;m"
	// lineWidth is how far its helper pads a line, in characters.
	lineWidth = 50
)

// notice is a line of the runner's script.
func (k *Kept) notice(format string, args ...any) {
	k.Say(green + fmt.Sprintf(format, args...) + reset)
}

// alarm is a warning of the runner's script.
func (k *Kept) alarm(format string, args ...any) {
	k.Say(yellow + fmt.Sprintf(format, args...) + reset)
}

// level is that of a line of the runner's helper.
type level struct{ colour, prefix string }

func infoLevel() level  { return level{} }
func warnLevel() level  { return level{yellow, "WARNING: "} }
func errorLevel() level { return level{red, "ERROR: "} }
func fatalLevel() level { return level{red, "FATAL: "} }

// field is what is said behind a line.
type field struct {
	key   string
	value any
}

// line is one of the runner's helper.
func (k *Kept) line(l level, text string, fields ...field) {
	out := fmt.Sprintf("%s%s%-*s%s ", l.colour, l.prefix, lineWidth-len(l.prefix), text, reset)
	for _, f := range fields {
		out += fmt.Sprintf(" %s%s%s=%v", l.colour, f.key, reset, f.value)
	}
	k.Say(out)
}

func (k *Kept) info(format string, args ...any) { k.line(infoLevel(), fmt.Sprintf(format, args...)) }

func (k *Kept) warn(format string, args ...any) { k.line(warnLevel(), fmt.Sprintf(format, args...)) }

func (k *Kept) fatal(format string, args ...any) { k.line(fatalLevel(), fmt.Sprintf(format, args...)) }
