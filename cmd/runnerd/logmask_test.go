package main

import (
	"io"
	"testing"

	bkclient "github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/runnerd/runnerd/runner"
)

// maskingOutput is an Output that hides secrets, as that of a job does.
type maskingOutput struct {
	runner.Output
	*runner.Mask
}

func (o maskingOutput) Masked(w io.Writer) *runner.MaskWriter { return o.Writer(w) }

// TestLogMask holds that a secret is hidden in a step's log however BuildKit cuts it into records, beside the logs
// of other steps.
func TestLogMask(t *testing.T) {
	mask := newLogMask(maskingOutput{Mask: runner.NewMask([]string{"s3cret-token"})})
	got := map[string]string{}
	collect := func(status *bkclient.SolveStatus) {
		for _, l := range status.Logs {
			got[string(l.Vertex)] += string(l.Data)
		}
	}
	for _, part := range []struct{ step, text string }{
		{"a", "before s3cr"},
		{"b", "et-token is no secret, but s3cret-"},
		{"a", "et-tok"},
		{"a", "en after"},
		{"b", "token is"},
		{"c", "ends with s3cret-to"},
	} {
		status := &bkclient.SolveStatus{Logs: []*bkclient.VertexLog{{Vertex: digest.Digest(part.step), Stream: 1, Data: []byte(part.text)}}}
		mask.hide(status)
		collect(status)
	}
	if got["c"] != "ends with " {
		t.Errorf("what may become a secret is not held back: %q", got["c"])
	}
	collect(mask.rest())
	for step, want := range map[string]string{
		"a": "before [MASKED] after", "b": "et-token is no secret, but [MASKED] is", "c": "ends with s3cret-to",
	} {
		if got[step] != want {
			t.Errorf("%s: got %q, want %q", step, got[step], want)
		}
	}
}
