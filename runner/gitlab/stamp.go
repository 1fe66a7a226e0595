package gitlab

import (
	"bytes"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// The streams of a log with time stamps: two hexadecimal digits, and O for output or E for errors.
const (
	stampRunner = "00O" // what the runner says
	stampOutput = "01O" // what the job says
	stampErrors = "01E"
)

// stampFormat is microseconds in UTC (gitlab-runner, common/buildlogger/internal/timestamper).
const stampFormat = "2006-01-02T15:04:05.000000Z "

// maxLine is how many bytes of a line are held back, at most, until its end comes.
const maxLine = 8 << 10

// stamper puts the time and the stream before each line:
//
//	2021-01-01T01:00:00.020010Z 01O a line
//	2021-01-01T01:00:00.030020Z 01O+and how it goes on
//
// A line is written when its end has come, when it has a carriage return, as progress bars do, or when it is long;
// what comes then is marked with a plus. Each write to w is of whole lines.
type stamper struct {
	w      io.Writer
	stream string

	mu      sync.Mutex
	line    []byte // with its stamp
	goesOn  bool   // the line before has not ended
	written []byte // kept between writes
}

// Write stamps p.
func (s *stamper) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written = s.written[:0]
	rest := p
	for {
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			break
		}
		s.add(rest[:end])
		s.end()
		rest = rest[end+1:]
	}
	if len(rest) > 0 {
		s.add(rest)
		if len(s.line) > maxLine || bytes.IndexByte(rest, '\r') >= 0 {
			s.end()
			s.goesOn = true
		}
	}
	if len(s.written) == 0 {
		return len(p), nil
	}
	if _, err := s.w.Write(s.written); err != nil {
		return 0, err
	}
	return len(p), nil
}

// add appends to the line, which gets the time of its beginning.
func (s *stamper) add(text []byte) {
	if len(s.line) == 0 {
		s.line = time.Now().UTC().AppendFormat(s.line, stampFormat)
		s.line = append(s.line, s.stream...)
		mark := byte(' ')
		if s.goesOn {
			mark = '+'
		}
		s.line, s.goesOn = append(s.line, mark), false
	}
	s.line = append(s.line, text...)
}

// end moves the line to what is written.
func (s *stamper) end() {
	s.written = append(append(s.written, s.line...), '\n')
	s.line = s.line[:0]
}

// Flush writes a line that has not ended.
func (s *stamper) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.line) == 0 {
		return nil
	}
	s.written = s.written[:0]
	s.end()
	_, err := s.w.Write(s.written)
	return err
}

// stampsSince is the major version of GitLab from which its log viewer is known to understand stamps.
const stampsSince = 18

// stamps reports whether a job's log gets time stamps: as it says itself with FF_TIMESTAMPS, else if its server says
// that it is new enough.
func stamps(j *spec.Job) bool {
	major := 0
	for _, v := range j.Variables {
		if v.Key == "CI_SERVER_VERSION_MAJOR" {
			major, _ = strconv.Atoi(v.Value)
		}
	}
	return truth(j, "FF_TIMESTAMPS", major >= stampsSince)
}
