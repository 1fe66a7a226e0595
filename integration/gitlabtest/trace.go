package gitlabtest

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"time"
)

var contentRange = regexp.MustCompile(`^(\d+)-(\d+)$`)

// patchLimit is how large one patch may be, in bytes; gitlab-runner sends at most 1 MiB.
const patchLimit = 16 << 20

// traceTooLarge is GitLab's own reason for a job's end.
const traceTooLarge = "trace_size_exceeded"

// patchTrace appends to a job's trace.
func (c *call) patchTrace() {
	token := c.r.Header.Get(jobToken)
	c.only(jobToken)
	if t := c.r.Header.Get("Content-Type"); t != "text/plain" {
		c.breach("Content-Type is %q, not text/plain", t)
	}
	debug, err := strconv.ParseBool(c.r.URL.Query().Get("debug_trace"))
	if err != nil {
		c.breach("debug_trace is neither true nor false")
	}
	c.s.mu.Lock()
	if !c.processing(token, "") {
		c.s.mu.Unlock()
		return
	}
	j := c.job
	if j.patching {
		c.note("a second patch while the first is on its way")
		c.s.mu.Unlock()
		c.message(http.StatusConflict)
		return
	}
	j.patching = true
	c.s.mu.Unlock()
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, patchLimit))
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	j.patching = false
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		c.message(http.StatusRequestEntityTooLarge)
		return
	}
	if err != nil {
		return // the runner is gone
	}
	if j.token != token || !c.processing(token, "") {
		return
	}
	if j.waitsForAck {
		c.note("a trace before the job is accepted")
	}
	c.s.alive(j)
	c.append(j, body, debug)
}

// append checks a patch and stores it.
func (c *call) append(j *job, body []byte, debug bool) {
	header := c.r.Header.Get("Content-Range")
	if header == "" {
		c.note("there is no Content-Range")
		c.error(http.StatusBadRequest, "400 Missing header Content-Range")
		return
	}
	m := contentRange.FindStringSubmatch(header)
	if m == nil {
		c.note("Content-Range is %q, not the first and last byte's offsets", header)
		c.error(http.StatusBadRequest, "400 Invalid header Content-Range")
		return
	}
	start, _ := strconv.Atoi(m[1])
	last, err := strconv.Atoi(m[2])
	if len(body) == 0 {
		c.note("an empty patch")
	} else if err != nil || last != start+len(body)-1 {
		c.note("Content-Range is %q for %d bytes: the end is inclusive", header, len(body))
	}
	if j.expect >= 0 && (start > j.expect || j.corrected && start != j.expect) {
		c.note("a patch from %d, though the runner was told that the server has %d", start, j.expect)
	}
	j.corrected = false
	end := start + len(body)
	if int64(end) > c.s.o.TraceLimit {
		c.s.end(j, Failed, traceTooLarge, 0)
		c.answered(func() { j.toldEnd = true })
		c.error(http.StatusForbidden, "403 Forbidden")
		return
	}
	size := len(j.trace)
	if start != size && end != size { // a patch that is stored already is as good as a new one
		j.expect = -1
		c.answered(func() { j.expect, j.corrected = size, true })
		c.w.Header().Set("Range", fmt.Sprintf("0-%d", size))
		c.error(http.StatusRequestedRangeNotSatisfiable, "416 Range Not Satisfiable")
		return
	}
	if start == size && len(body) > 0 {
		c.store(j, body)
	}
	j.debugTrace = j.debugTrace || debug
	size = len(j.trace)
	j.expect = -1
	c.answered(func() { j.expect = size })
	c.w.Header().Set("Job-Status", string(j.Status))
	c.w.Header().Set("Range", fmt.Sprintf("0-%d", size))
	c.w.Header().Set(traceInterval, seconds(c.s.o.UpdateInterval))
	c.json(http.StatusAccepted, "202")
}

// maxHasty is how many small patches in a row may come sooner than in half the interval that was told: the first after
// a pause, and the last.
const maxHasty = 3

// small is the size, in bytes, of a patch that could have waited.
const small = 64 << 10

// hurry notes a runner that does not keep to the interval.
func (c *call) hurry(j *job, n int) {
	if p := len(j.Patches); p == 0 || n > small || time.Since(j.Patches[p-1].At) >= c.s.o.UpdateInterval/2 {
		j.hasty = 0
		return
	}
	if j.hasty++; j.hasty == maxHasty {
		c.note("%d patches in a row before half the interval of %v was over", maxHasty, c.s.o.UpdateInterval)
	}
}

func (c *call) store(j *job, body []byte) {
	c.hurry(j, len(body))
	start := len(j.trace)
	j.trace = append(j.trace, body...)
	j.crc = crc32.Update(j.crc, crc32.IEEETable, body)
	if len(j.Patches) < maxNoted {
		j.Patches = append(j.Patches, Patch{time.Now(), start, len(j.trace)})
	}
	if j.Clock.FirstOutput.IsZero() {
		j.Clock.FirstOutput = time.Now()
		c.s.notify()
	}
	c.secrets(j, start)
}

// cutTrace forgets the trace.
func (j *job) cutTrace() { j.trace, j.crc, j.Patches = nil, 0, nil }

// minMasked is the least length of a variable that GitLab lets a user mask.
const minMasked = 8

// secrets looks for what must never be in a trace, from where it may have begun before the patch.
func (c *call) secrets(j *job, start int) {
	for _, v := range j.payload.Variables {
		c.secret(j, start, []byte(v.Value), v.Masked && len(v.Value) >= minMasked, "the value of the masked variable "+v.Key)
	}
	c.secret(j, start, []byte(j.token), true, "the job's token")
	if j.runner != nil {
		c.secret(j, start, []byte(j.runner.token), true, "the runner's token")
	}
	for _, prefix := range append([]string{"glpat-"}, j.payload.Features.TokenMaskPrefixes...) {
		from := max(0, start-len(prefix))
		for rest := j.trace[from:]; ; {
			i := bytes.Index(rest, []byte(prefix))
			if i < 0 {
				break
			}
			rest = rest[i+len(prefix):]
			if len(rest) > 0 && tokenByte(rest[0]) {
				c.note("the trace has a token that begins with %s", prefix)
				break
			}
		}
	}
}

func (c *call) secret(j *job, start int, value []byte, is bool, what string) {
	if is && len(value) > 0 && bytes.Contains(j.trace[max(0, start-len(value)+1):], value) {
		c.note("the trace has %s", what)
	}
}

func tokenByte(b byte) bool {
	return b == '-' || b == '_' || b >= '0' && b <= '9' || b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z'
}

// LoseTrace makes the server forget what it has of a job's trace, as when its memory is flushed.
func (s *Server) LoseTrace(id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.job(id)
	if j == nil {
		return fmt.Errorf("job %d: %w", id, ErrUnknown)
	}
	j.lose()
	return nil
}

func (j *job) lose() {
	j.cutTrace()
	j.lost, j.expect = true, -1
}
