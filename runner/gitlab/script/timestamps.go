package script

import (
	"bytes"
	"fmt"
	"io"
	"time"
)

// maxPartialLine is how many bytes of a line are held back until the rest of it comes.
const maxPartialLine = 8 << 10

// Timestamps writes each line with the time it began, as GitLab reads it:
//
//	2021-01-01T01:00:00.020010Z 01O text
//
// that is the time, two hexadecimal digits for the stream, O or E, and a space, or a + where the line goes on with the
// line before. Half a line is held back until it is whole, too long, has a carriage return (as progress bars do) or
// until Flush. It is not safe for several goroutines at once. Masking comes before it: a secret in two halves is none.
//
// Source: gitlab-runner, common/buildlogger/internal/timestamper; GitLab, lib/gitlab/ci/ansi2json.
type Timestamps struct {
	w      io.Writer
	stream string
	now    func() time.Time
	line   bytes.Buffer // the held-back line, with its time
	goesOn bool         // the last line written was not a whole one
}

// NewTimestamps returns a writer for one stream: kind is 'O' or 'E'; number is 0 for what the runner says, 1 for the
// job's scripts, 16 and more for services.
func NewTimestamps(w io.Writer, kind byte, number uint8) *Timestamps {
	return &Timestamps{w: w, stream: fmt.Sprintf("%02x%c", number, kind), now: time.Now}
}

// Write takes all of p. All of its lines are one Write to what is below.
func (t *Timestamps) Write(p []byte) (int, error) {
	var out bytes.Buffer
	for rest := p; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n')
		if t.line.Len() == 0 {
			t.head(&t.line)
		}
		if i < 0 {
			t.line.Write(rest)
			if t.line.Len() > maxPartialLine || bytes.IndexByte(rest, '\r') >= 0 {
				t.cut(&out)
			}
			break
		}
		t.line.Write(rest[:i+1])
		_, _ = t.line.WriteTo(&out)
		t.goesOn = false
		rest = rest[i+1:]
	}
	if out.Len() == 0 {
		return len(p), nil
	}
	if _, err := t.w.Write(out.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes what is held back; what comes next goes on with the same line.
func (t *Timestamps) Flush() error {
	if t.line.Len() == 0 {
		return nil
	}
	var out bytes.Buffer
	t.cut(&out)
	_, err := t.w.Write(out.Bytes())
	return err
}

// Close writes what is held back. It does not close what is below.
func (t *Timestamps) Close() error { return t.Flush() }

// cut ends the line before it is whole.
func (t *Timestamps) cut(out *bytes.Buffer) {
	t.line.WriteByte('\n')
	_, _ = t.line.WriteTo(out)
	t.goesOn = true
}

func (t *Timestamps) head(b *bytes.Buffer) {
	b.WriteString(t.now().UTC().Format("2006-01-02T15:04:05.000000Z "))
	b.WriteString(t.stream)
	if t.goesOn {
		b.WriteByte('+')
	} else {
		b.WriteByte(' ')
	}
}
