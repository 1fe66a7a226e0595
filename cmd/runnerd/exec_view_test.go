package main

import (
	"bytes"
	"strings"
	"testing"
)

const execTrace = "\x1b[0KRunning with runnerd 1.0\x1b[0;m\n" +
	"section_start:1560896352:prepare_executor\r\x1b[0K\x1b[0K\x1b[36;1mPreparing the \"runnerd\" executor\x1b[0;m\n" +
	"Using image x\n" +
	"section_end:1560896353:prepare_executor\r\x1b[0Ksection_start:1560896353:get_sources\r\x1b[0K\x1b[36;1mGetting source from Git repository\x1b[0;m\n" +
	"Fetching changes...\n" +
	"section_end:1560896353:get_sources\r\x1b[0Ksection_start:1560896353:step_script\r\x1b[0K\x1b[36;1mExecuting \"step_script\" stage of the job script\x1b[0;m\n" +
	"\x1b[32;1m$ make\x1b[0;m\n" +
	"10%\r50%\r100%\r\n" +
	"\x1b[2J\x1b]0;title\x07clean\x08\n" +
	"\n" +
	"section_start:1560896354:mine[collapsed=true]\r\x1b[0KMy section\n" +
	"hidden\nsection_start:1560896354:inner\r\x1b[0KInner\nhidden too\nsection_end:1560896354:inner\r\x1b[0K\n" +
	"section_end:1560896354:mine\r\x1b[0K\nshown\n" +
	"section_end:1560896355:step_script\r\x1b[0K\x1b[32;1mJob succeeded\x1b[0;m\n"

func TestTraceView(t *testing.T) {
	for name, c := range map[string]struct {
		view traceView
		want string
	}{
		"headings": {traceView{}, `Running with runnerd 1.0
Preparing the "runnerd" executor
Getting source from Git repository
Executing "step_script" stage of the job script
$ make
100%
clean

My section
shown
Job succeeded
`},
		"all": {traceView{all: true}, `Running with runnerd 1.0
Preparing the "runnerd" executor
Using image x
Getting source from Git repository
Fetching changes...
Executing "step_script" stage of the job script
$ make
100%
clean

My section
hidden
Inner
hidden too
shown
Job succeeded
`},
	} {
		for _, size := range []int{1, 7, 10000} {
			var out bytes.Buffer
			v := c.view
			v.w, v.prefix = &out, "| "
			for rest := execTrace; rest != ""; {
				n := min(size, len(rest))
				if _, err := v.Write([]byte(rest[:n])); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := v.end(false); err != nil {
				t.Fatal(err)
			}
			want := "| " + strings.ReplaceAll(strings.TrimSuffix(c.want, "\n"), "\n", "\n| ") + "\n"
			if out.String() != want {
				t.Errorf("%s in parts of %d: got\n%s\nwant\n%s", name, size, out.String(), want)
			}
		}
	}
}

// TestTraceViewFailure has a job that fails before its script: what led to that is shown, in the trace's colours.
func TestTraceViewFailure(t *testing.T) {
	var out bytes.Buffer
	v := traceView{w: &out, colours: true}
	_, _ = v.Write([]byte("section_start:1:get_sources\r\x1b[0K\x1b[36mSources\x1b[0m\nfatal: \x1b[31mno\x1b[0m\x1b[K\nsection_end:1:get_sources\r\x1b[0KERROR: Job failed"))
	if err := v.end(true); err != nil {
		t.Fatal(err)
	}
	if want := "\x1b[36mSources\x1b[0m\x1b[0m\nERROR: Job failed\nfatal: \x1b[31mno\x1b[0m\x1b[0m\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

// TestTraceViewStamps has a trace whose lines begin with the time.
func TestTraceViewStamps(t *testing.T) {
	const stamp = "2026-11-24T19:49:25.644195Z 01O"
	var out bytes.Buffer
	v := traceView{w: &out}
	_, _ = v.Write([]byte(stamp + " Running\n" + stamp + " section_start:1:get_sources\r\x1b[0K\n" + stamp + "+Sources\n" + stamp + " hidden\n" +
		stamp + " section_end:1:get_sources\r\x1b[0K\n" + stamp + "+section_start:1:step_script\r\x1b[0K\n" + stamp + "+Script\n" +
		"2026-11-24T19:49:25.644195Z 02E error\n" + stamp + " \n" + stamp + " end"))
	_ = v.end(false)
	if want := "Running\nSources\nScript\nerror\n\nend\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	out.Reset()
	v = traceView{w: &out}
	_, _ = v.Write([]byte("no stamp\n" + stamp + " but one in the log\n"))
	if want := "no stamp\n" + stamp + " but one in the log\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestTraceViewLongLine(t *testing.T) {
	var out bytes.Buffer
	v := traceView{w: &out}
	for range 100 {
		_, _ = v.Write(bytes.Repeat([]byte("x"), 10000))
	}
	_ = v.end(false)
	if got := strings.Count(out.String(), "x"); got != 1_000_000 || len(v.partial) > 0 {
		t.Errorf("%d of 1000000 bytes are shown", got)
	}
}
