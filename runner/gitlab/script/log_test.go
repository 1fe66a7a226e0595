package script

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStages(t *testing.T) {
	at := time.Unix(1600000000, 0)
	for _, test := range []struct{ got, want string }{
		{
			StagePrepareExecutor.Begin("runnerd", at, true),
			"section_start:1600000000:prepare_executor\r\x1b[0K\x1b[36;1mPreparing the \"runnerd\" executor\x1b[0;m\n",
		},
		{StageGetSources.Begin("", at, false), "\x1b[36;1mGetting source from Git repository\x1b[0;m\n"},
		{
			StageOf("script").Begin("", at, true),
			"section_start:1600000000:step_script\r\x1b[0K\x1b[36;1mExecuting \"step_script\" stage of the job script\x1b[0;m\n",
		},
		{StageUpload.End(at, true), "section_end:1600000000:upload_artifacts_on_success\r\x1b[0K"},
		{StageUpload.End(at, false), ""},
		{SectionStart("x", at, "collapsed=true", "hide_duration=true"), "section_start:1600000000:x[collapsed=true,hide_duration=true]\r\x1b[0K"},
		{Succeeded(), "\x1b[32;1mJob succeeded\x1b[0;m\n"},
		{Failure("Job failed: exit code %d", 3), "\x1b[31;1mERROR: Job failed: exit code 3\x1b[0;m\n"},
		{Warning("careful"), "\x1b[0;33mWARNING: careful\x1b[0;m\n"},
	} {
		if test.got != test.want {
			t.Errorf("got  %q\nwant %q", test.got, test.want)
		}
	}
}

func TestTimestamps(t *testing.T) {
	const head = "2021-01-01T01:00:00.020010Z 01O"
	at := time.Date(2021, 1, 1, 2, 0, 0, 20010999, time.FixedZone("", 3600))
	long := strings.Repeat("x", maxPartialLine)
	for _, test := range []struct {
		name   string
		writes []string
		want   string
	}{
		{"lines", []string{"a\nb\n"}, head + " a\n" + head + " b\n"},
		{"in pieces", []string{"a", "b", "c\nd", "\n"}, head + " abc\n" + head + " d\n"},
		{"no end", []string{"a\nb"}, head + " a\n" + head + " b\n"},
		{"empty lines", []string{"\n\n"}, head + " \n" + head + " \n"},
		{"carriage return", []string{"10%\r", "20%\r\n", "done\n"}, head + " 10%\r\n" + head + "+20%\r\n" + head + " done\n"},
		{"section", []string{"section_start:1:x\r\x1b[0K", "Head\n"}, head + " section_start:1:x\r\x1b[0K\n" + head + "+Head\n"},
		{"long", []string{long, "rest\n"}, head + " " + long + "\n" + head + "+rest\n"},
		{"nothing", []string{"", ""}, ""},
	} {
		var out bytes.Buffer
		w := NewTimestamps(&out, 'O', 1)
		w.now = func() time.Time { return at }
		for _, s := range test.writes {
			if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
				t.Fatalf("%s: Write(%q) = %d, %v", test.name, s, n, err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if out.String() != test.want {
			t.Errorf("%s:\ngot  %q\nwant %q", test.name, out.String(), test.want)
		}
	}
}

func TestTimestampsFlush(t *testing.T) {
	var out bytes.Buffer
	w := NewTimestamps(&out, 'E', 17)
	w.now = func() time.Time { return time.Unix(0, 0) }
	_, _ = w.Write([]byte("Password: "))
	if out.Len() != 0 {
		t.Fatalf("half a line is written: %q", out.String())
	}
	_ = w.Flush()
	_ = w.Flush()
	_, _ = w.Write([]byte("thanks\nnext\n"))
	const head = "1970-01-01T00:00:00.000000Z 11E"
	if want := head + " Password: \n" + head + "+thanks\n" + head + " next\n"; out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}

func TestShellCommand(t *testing.T) {
	for _, entrypoint := range [][]string{nil, {""}, {"env", "X=1"}} {
		command := ShellCommand(entrypoint)
		if len(entrypoint) == 2 && !slices.Equal(command[:2], entrypoint) {
			t.Errorf("the entrypoint does not come first: %q", command)
		}
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Stdin = strings.NewReader(`echo "${BASH_VERSION:+bash} $X"` + "\nexit 3\n")
		out, err := cmd.Output()
		if want := map[bool]string{false: "bash \n", true: "bash 1\n"}[len(entrypoint) == 2]; string(out) != want || cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("%q: %q, %v, want %q", entrypoint, out, err, want)
		}
	}
}
