package script

import (
	"fmt"
	"strings"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// Scripts are commands that a registration adds to those of each job (gitlab-runner's config.toml).
type Scripts struct {
	PreGetSources  string `json:"pre_get_sources_script,omitempty"`
	PostGetSources string `json:"post_get_sources_script,omitempty"`
	PreBuild       string `json:"pre_build_script,omitempty"`
	PostBuild      string `json:"post_build_script,omitempty"`
}

// StepOptions say how a step's script is made.
type StepOptions struct {
	Settings Settings
	// Sections says that the server shows sections (spec.JobFeatures.TraceSections).
	Sections bool
	// Scripts are the registration's. Those of the build are not for after_script.
	Scripts Scripts
	// InEnvironment says that the shell is started with Variables.Env, and that nothing stands before it that could
	// change that: no entrypoint. The script does not repeat them then, which saves reading them byte by byte.
	InEnvironment bool
}

// Step is the script of a step, for the standard input of a ShellCommand. It ends with the exit code of the first
// command that fails. For after_script, v has the job's state: v.With("CI_JOB_STATUS", "failed").
func Step(v *Variables, step spec.Step, o StepOptions) string {
	var commands strings.Builder
	after := step.Name == spec.StepAfterScript
	if after {
		echo(&commands, green+"Running after script..."+reset)
	}
	write := func(section string, script ...string) {
		writeCommands(&commands, script, section, o.Sections && o.Settings.ScriptSections, o.Settings.ExitCodeCheck)
	}
	if o.Scripts.PreBuild != "" && !after {
		write("pre_build_script", o.Scripts.PreBuild)
	}
	switch {
	case after:
		write("after_script_step", step.Script...)
	case step.Name == "release": // GitLab's own command line, not the user's script
		write("script_step", v.ExpandAll(step.Script)...)
	default:
		write("script_step", step.Script...)
	}
	if o.Scripts.PostBuild != "" && !after {
		write("post_build_script", o.Scripts.PostBuild)
	}

	var b strings.Builder
	b.WriteString(onTerm + "\n")
	writeOptions(&b, o.Settings.DebugTrace)
	writeVariables(&b, v, o.InEnvironment)
	fmt.Fprintf(&b, "cd %s\n", Quote(v.ProjectDir))
	// The shell reads the whole script before it runs a line of it, and a command that reads its standard input
	// finds nothing there: not the rest of the script.
	fmt.Fprintf(&b, "(%s; eval %s) </dev/null\nexit 0\n", onTerm, Quote(commands.String()))
	return b.String()
}

// onTerm keeps Bash from printing the script when it is stopped.
const onTerm = `trap 'exit 1' TERM`

// debugNotice is what the log says before everything that CI_DEBUG_TRACE shows.
const debugNotice = "CI_DEBUG_TRACE is on: all commands and the values of all variables are shown below"

// writeOptions ends the script with the first command that fails, in a pipe too where the shell can tell.
func writeOptions(b *strings.Builder, trace bool) {
	if trace {
		echo(b, yellow+"WARNING: "+debugNotice+reset)
		b.WriteString("set -o xtrace\n")
	}
	b.WriteString(`if [ -n "${BASH_VERSION-}" ]; then set -o pipefail; else case "$(set -o)" in *pipefail*) set -o pipefail ;; esac; fi
set -o errexit
set +o noclobber
`)
}

// writeVariables writes the files of file variables, exports the variables, and then those that the job has written
// into $GITLAB_ENV.
func writeVariables(b *strings.Builder, v *Variables, inEnvironment bool) {
	temp := Quote(v.TempDir)
	fmt.Fprintf(b, "[ -d %s ] || mkdir -p %s </dev/null\n", temp, temp)
	for _, f := range v.Files() {
		fmt.Fprintf(b, "printf %%s %s >%s\n", Quote(f.Content), Quote(f.Path))
	}
	if !inEnvironment {
		for _, variable := range v.list {
			if isName(variable.Key) {
				fmt.Fprintf(b, "export %s=%s\n", variable.Key, Quote(v.environment(variable)))
			}
		}
	}
	env := Quote(v.Get("GITLAB_ENV"))
	fmt.Fprintf(b, `if [ -r %s ]; then while read -r line || [ -n "$line" ]; do case $line in [A-Za-z_]*=*) export "$line" ;; esac; done <%s; fi
`, env, env)
}

// writeCommands writes commands, each after it is shown.
func writeCommands(b *strings.Builder, commands []string, section string, sections, check bool) {
	for i, command := range commands {
		command = strings.TrimSpace(command)
		first, _, multiline := strings.Cut(command, "\n")
		switch {
		case command == "":
			echo(b, "")
		case multiline && sections:
			name := fmt.Sprintf("section_%s_%d", section, i)
			header := green + "$ " + command + reset
			fmt.Fprintf(b, "printf 'section_start:%%s:%s\\r%s%%s\\n' %s %s\n",
				name+sectionOptions([]string{"hide_duration=true", "collapsed=true"}), clearLine, shellTime, Quote(header))
			fmt.Fprintf(b, "printf 'section_end:%%s:%s\\r%s\\n' %s\n", name, clearLine, shellTime)
		case multiline:
			echo(b, green+"$ "+first+" # collapsed multi-line command"+reset)
		default:
			echo(b, green+"$ "+command+reset)
		}
		b.WriteString(command + "\n")
		if check {
			b.WriteString("_runner_exit_code=$?; if [ $_runner_exit_code -ne 0 ]; then exit $_runner_exit_code; fi\n")
		}
	}
}

// shellTime is the Unix time in a script; Bash knows it without a process.
const shellTime = `"${EPOCHSECONDS:-$(date +%s)}"`

// echo writes a line. It is not the shell's echo, which differs about backslashes.
func echo(b *strings.Builder, text string) {
	fmt.Fprintf(b, "printf '%%s\\n' %s\n", Quote(text))
}
