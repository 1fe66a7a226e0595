package script

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// stepRun runs a step's script in a directory of its own.
type stepRun struct {
	shell   []string
	vars    []spec.Variable
	options StepOptions
	step    string // its name; empty: script
	env     bool   // give it the variables in the environment
}

// run returns what the script wrote to both streams, and its exit code.
func (r stepRun) run(t *testing.T, commands ...string) (string, int, *Variables) {
	t.Helper()
	builds := t.TempDir()
	if err := os.MkdirAll(builds+"/g/it's", 0o755); err != nil {
		t.Fatal(err)
	}
	job := spec.Job{GitInfo: spec.GitInfo{RepoURL: "https://h/g/it's.git"}, Variables: r.vars}
	v, err := NewVariables(job, Runner{BuildsDir: builds})
	if err != nil {
		t.Fatal(err)
	}
	if r.step == "" {
		r.step = spec.StepScript
	}
	r.options.InEnvironment = r.env
	settings := v.Settings(job)
	settings.ScriptSections = settings.ScriptSections || r.options.Settings.ScriptSections
	r.options.Settings = settings
	cmd := exec.Command(r.shell[0], r.shell[1:]...)
	cmd.Stdin = strings.NewReader(Step(v, spec.Step{Name: r.step, Script: commands}, r.options))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	if r.env {
		cmd.Env = append(cmd.Env, v.Env()...)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run()
	return out.String(), cmd.ProcessState.ExitCode(), v
}

const g, r0 = "\x1b[32;1m", "\x1b[0;m"

func TestStep(t *testing.T) {
	for _, test := range []struct {
		name     string
		commands []string
		want     string // of the output
		code     int
	}{
		{"echo", []string{"echo hello"}, g + "$ echo hello" + r0 + "\nhello\n", 0},
		{"trimmed", []string{"  true \n"}, g + "$ true" + r0 + "\n", 0},
		{"empty command", []string{"", "true"}, "\n" + g + "$ true" + r0 + "\n", 0},
		{"exit code of a command", []string{"(exit 7)", "echo never"}, g + "$ (exit 7)" + r0 + "\n", 7},
		{"exit", []string{"exit 3", "echo never"}, g + "$ exit 3" + r0 + "\n", 3},
		{"exit 0 ends it", []string{"exit 0", "false"}, g + "$ exit 0" + r0 + "\n", 0},
		{"trap", []string{"trap 'echo bye' EXIT", "sh -c 'exit 9'"}, g + "$ trap 'echo bye' EXIT" + r0 + "\n" + g + "$ sh -c 'exit 9'" + r0 + "\nbye\n", 9},
		{"condition may fail", []string{"false || echo fine", "if false; then :; fi"}, g + "$ false || echo fine" + r0 + "\nfine\n" + g + "$ if false; then :; fi" + r0 + "\n", 0},
		{"lines", []string{"for i in 1 2; do\n  echo $i\ndone"}, g + "$ for i in 1 2; do # collapsed multi-line command" + r0 + "\n1\n2\n", 0},
		{"here document", []string{"cat <<EOF\na 'b' \"c\" $HOME-\nEOF"}, g + "$ cat <<EOF # collapsed multi-line command" + r0 + "\na 'b' \"c\" -\n", 0},
		{"state goes on", []string{"cd /; X='a b'", `pwd; echo "$X"`, "f() { echo f; }", "f"}, g + "$ cd /; X='a b'" + r0 + "\n" + g + `$ pwd; echo "$X"` + r0 + "\n/\na b\n" + g + "$ f() { echo f; }" + r0 + "\n" + g + "$ f" + r0 + "\nf\n", 0},
		{"standard input", []string{"cat", "read x || echo nothing", "echo after"}, g + "$ cat" + r0 + "\n" + g + "$ read x || echo nothing" + r0 + "\nnothing\n" + g + "$ echo after" + r0 + "\nafter\n", 0},
		{"backslashes", []string{`printf '%s\n' 'a\nb\\c'`}, g + `$ printf '%s\n' 'a\nb\\c'` + r0 + "\na\\nb\\\\c\n", 0},
		{"exec", []string{"exec sh -c 'exit 4'"}, g + "$ exec sh -c 'exit 4'" + r0 + "\n", 4},
		{"killed", []string{"sh -c 'kill -9 $$'"}, "", 137},
		{"directory", []string{`test "$PWD" = "$CI_PROJECT_DIR"`}, "", 0},
		{"no clobber", []string{"echo a >x", "echo b >x"}, "", 0},
	} {
		for _, shell := range shells(t) {
			for _, env := range []bool{false, true} {
				out, code, _ := stepRun{shell: shell, env: env}.run(t, test.commands...)
				if code != test.code || test.want != "" && out != test.want {
					t.Errorf("%s: %s: exit code %d\ngot  %q\nwant %q, %d", shellName(shell), test.name, code, out, test.want, test.code)
				}
			}
		}
	}
}

func TestStepInBash(t *testing.T) {
	for command, want := range map[string]int{
		"false | true":               1,
		"[[ a == a* ]]":              0,
		"x=(1 2); test ${#x[@]} = 2": 0,
		"if":                         1, // a syntax error
		"shopt -s expand_aliases\nalias q=true\nq":   0,
		"set +e\nfalse\ntrue":                        0,
		`test -z "${x}" && test -n "$BASH_VERSION"`:  0,
		"trap 'exit 5' TERM; kill -TERM $BASHPID; :": 5,
	} {
		out, code, _ := stepRun{shell: []string{"bash"}}.run(t, command)
		if code != want && !(command == "if" && code == 2) {
			t.Errorf("%q: exit code %d, want %d: %s", command, code, want, out)
		}
	}
}

func TestStepVariables(t *testing.T) {
	vars := []spec.Variable{
		public("PLAIN", "p"),
		{Key: "LINES", Value: "one\ntwo 'three'\n"},
		{Key: "KEY", Value: "-----BEGIN-----\n$PLAIN", File: true, Masked: true},
		{Key: "RAW", Value: "$PLAIN `id`", Raw: true},
		public("no-name", "x"), public("UNI", "ünïcode ☃"), public("USES", "$KEY"),
		public("x;touch $CI_PROJECT_DIR/injected;y", "z"),
	}
	for _, shell := range shells(t) {
		for _, env := range []bool{false, true} {
			out, code, v := stepRun{shell: shell, vars: vars, env: env}.run(t,
				`echo "$PLAIN|$LINES|$RAW|$UNI|$CI_JOB_STATUS"; cat "$KEY"; test "$USES" = "$KEY"; test ! -e injected`,
				`echo "FROM_JOB=a b" >>"$GITLAB_ENV"`)
			if want := "p|one\ntwo 'three'\n|$PLAIN `id`|ünïcode ☃|running\n-----BEGIN-----\np"; code != 0 || !strings.Contains(out, want) {
				t.Errorf("%s: exit code %d: %q has no %q", shellName(shell), code, out, want)
			}
			if !strings.HasPrefix(v.Get("KEY"), v.ProjectDir+".tmp/") {
				t.Errorf("a file variable's file is in the project: %s", v.Get("KEY"))
			}
			// What the job wrote into GITLAB_ENV is there in its next script.
			cmd := exec.Command(shell[0], shell[1:]...)
			cmd.Stdin = strings.NewReader(Step(v, spec.Step{Name: "after_script", Script: []string{`echo "<$FROM_JOB>"`}}, StepOptions{}))
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "<a b>") {
				t.Errorf("%s: %v: %s", shellName(shell), err, out)
			}
		}
	}
}

func TestAfterScript(t *testing.T) {
	for _, shell := range shells(t) {
		out, code, _ := stepRun{shell: shell, step: spec.StepAfterScript, options: StepOptions{Scripts: Scripts{PreBuild: "echo before", PostBuild: "echo after"}}}.run(t, "echo cleaning", "exit 6")
		want := g + "Running after script..." + r0 + "\n" + g + "$ echo cleaning" + r0 + "\ncleaning\n" + g + "$ exit 6" + r0 + "\n"
		if out != want || code != 6 {
			t.Errorf("%s: exit code %d\ngot  %q\nwant %q", shellName(shell), code, out, want)
		}
		out, _, _ = stepRun{shell: shell, options: StepOptions{Scripts: Scripts{PreBuild: "echo before", PostBuild: "echo after"}}}.run(t, "echo it")
		if want := g + "$ echo before" + r0 + "\nbefore\n" + g + "$ echo it" + r0 + "\nit\n" + g + "$ echo after" + r0 + "\nafter\n"; out != want {
			t.Errorf("%s: got %q, want %q", shellName(shell), out, want)
		}
	}
}

func TestStepSections(t *testing.T) {
	for _, shell := range shells(t) {
		out, code, _ := stepRun{shell: shell, options: StepOptions{Sections: true, Settings: Settings{ScriptSections: true}}}.run(t, "true", "echo 1\necho '\\t2%s'")
		var start, end int64
		lines := strings.SplitAfterN(out, "\n", 4)
		if code != 0 || len(lines) != 4 {
			t.Fatalf("%s: %d: %q", shellName(shell), code, out)
		}
		_, err1 := fmt.Sscanf(lines[1], "section_start:%d:section_script_step_1[hide_duration=true,collapsed=true]\r\x1b[0K"+g+"$ echo 1\n", &start)
		rest := strings.Join(lines[2:], "")
		header, section, ok := strings.Cut(rest, "section_end:")
		_, err2 := fmt.Sscanf(section, "%d:section_script_step_1\r\x1b[0K\n1\n", &end)
		if err1 != nil || err2 != nil || !ok || header != "echo '\\t2%s'"+r0+"\n" || start == 0 || end < start {
			t.Errorf("%s: %v, %v: %q", shellName(shell), err1, err2, out)
		}
	}
}

func TestStepDebugTrace(t *testing.T) {
	for _, shell := range shells(t) {
		out, code, _ := stepRun{shell: shell, vars: []spec.Variable{public("CI_DEBUG_TRACE", "true")}}.run(t, "echo $((1+1))")
		if code != 0 || !strings.Contains(out, "\x1b[0;33mWARNING: "+debugNotice) || !strings.Contains(out, "+ echo 2\n2\n") {
			t.Errorf("%s: exit code %d: %q", shellName(shell), code, out)
		}
	}
}

func TestStepExitCodeCheck(t *testing.T) {
	vars := []spec.Variable{public("FF_ENABLE_BASH_EXIT_CODE_CHECK", "1")}
	out, code, _ := stepRun{shell: []string{"bash"}, vars: vars}.run(t, "set +e; (exit 4)", "echo never")
	if code != 4 || strings.Contains(out, "\nnever") {
		t.Errorf("exit code %d: %q", code, out)
	}
}

// TestStepTempMade holds that a step writes the files of file variables.
func TestStepTempMade(t *testing.T) {
	_, code, v := stepRun{shell: []string{"sh"}, vars: []spec.Variable{{Key: "F", Value: "x", File: true}}}.run(t, "true")
	if info, err := os.Stat(filepath.Join(v.TempDir, "F")); code != 0 || err != nil || info.Size() != 1 {
		t.Errorf("exit code %d: %v", code, err)
	}
}

// TestStepStopped stops a script as a cancelled job's is: it must not show itself in the log.
func TestStepStopped(t *testing.T) {
	job := spec.Job{}
	for _, shell := range shells(t) {
		builds := t.TempDir()
		v, err := NewVariables(job, Runner{BuildsDir: builds})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(v.ProjectDir, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(shell[0], shell[1:]...)
		cmd.Stdin = strings.NewReader(Step(v, spec.Step{Name: "script", Script: []string{"sh -c 'echo started; exec sleep 60' # a secret"}}, StepOptions{}))
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = cmd.Stdout
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		for range 2 { // the command, and what it says when it can be stopped
			if _, err := lines.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(lines)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code == 0 || strings.Contains(string(rest), "secret") {
			t.Errorf("%s: exit code %d: %q", shellName(shell), code, rest)
		}
	}
}
