// Package script turns a GitLab job into text: its variables, the shell scripts of its stages, and what its log says
// around them. It does no I/O. What the scripts do and print is what gitlab-runner's Bash shell does and prints, so
// that nobody sees in a log which runner it was.
//
// Sources: gitlab-runner v19.4, shells/bash.go, shells/abstract.go, common/build.go, common/build_settings.go and
// common/spec/variables.go.
package script

import "strings"

// findShell replaces itself by the first of the shells that gitlab-runner's Docker executor looks for, in its order.
const findShell = `for shell in /usr/local/bin/bash /usr/bin/bash /bin/bash /usr/local/bin/sh /usr/bin/sh /bin/sh /busybox/sh; do
	[ -x "$shell" ] && exec "$shell"
done
echo shell not found
exit 1
`

// ShellCommand is the command line of a container that runs a script given on its standard input. Entrypoint is the
// job's own, or the image's where the job has none; [""] stands for none at all.
func ShellCommand(entrypoint []string) []string {
	if len(entrypoint) == 1 && entrypoint[0] == "" {
		entrypoint = nil
	}
	return append(append([]string{}, entrypoint...), "sh", "-c", findShell)
}

// Quote makes one word of a POSIX shell of any text. Bytes of value 0 are left out: no variable can hold them.
func Quote(text string) string {
	text = strings.ReplaceAll(text, "\x00", "")
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// quoteAll makes a command line of words.
func quoteAll(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = Quote(w)
	}
	return strings.Join(quoted, " ")
}
