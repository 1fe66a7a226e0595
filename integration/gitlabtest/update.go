package gitlabtest

import (
	"math"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

const traceInterval = "X-GitLab-Trace-Update-Interval"

// processing finds whether a job's token is good and the job is a runner's; if not, it answers. The lock is held.
func (c *call) processing(token string, update spec.State) bool {
	j := c.job
	if j == nil || token == "" {
		c.note("there is no such job, or no token")
		c.message(http.StatusForbidden)
		return false
	}
	if slices.Contains(j.oldTokens, token) {
		// The job went back into the queue, and may be another runner's by now.
		status := http.StatusForbidden
		if update == spec.Running || update == spec.Pending {
			status = http.StatusConflict
		}
		c.message(status)
		return false
	}
	if token != j.token {
		c.note("this is not the job's token")
		c.message(http.StatusForbidden)
		return false
	}
	if j.Status == Running || j.Status == Canceling || j.waitsForAck {
		return true
	}
	if j.Status == Pending && (update == spec.Running || update == spec.Pending) {
		c.message(http.StatusConflict) // it was not accepted in time, and is in the queue
		return false
	}
	if j.toldEnd {
		c.note("the runner was told that the job has ended")
	}
	c.answered(func() { j.toldEnd = true })
	c.w.Header().Set("Job-Status", string(j.Status))
	c.message(http.StatusForbidden, "Job is not processing on runner")
	return false
}

// update is the runner's word on the state of a job.
func (c *call) update() {
	var in spec.Update
	if !c.read(&in) {
		return
	}
	c.token(jobToken, in.Token)
	if in.Token == "" {
		c.breach("the token is missing")
		c.error(http.StatusBadRequest, "token is missing")
		return
	}
	c.info(&in.Info)
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if !c.processing(in.Token, in.State) {
		return
	}
	j := c.job
	status := c.settle(j, in)
	if len(j.Updates) < maxNoted {
		j.Updates = append(j.Updates, Update{time.Now(), in.State, status})
	}
	if j.Status.Ended() {
		c.answered(func() { j.toldEnd = true })
	}
	c.w.Header().Set("Job-Status", string(j.Status))
	if status == http.StatusBadRequest {
		c.note("state %q of a job that is %s", in.State, j.Status)
	}
	c.json(status, strconv.Itoa(status))
}

// maxNoted keeps what is noted of a job within bounds.
const maxNoted = 4096

// settle makes the change and returns the answer.
func (c *call) settle(j *job, in spec.Update) int {
	final := in.State == spec.Success || in.State == spec.Failed
	c.checkUpdate(j, in, final)
	switch {
	case in.State == spec.Pending && j.waitsForAck:
		c.s.alive(j)
		return http.StatusOK
	case in.State == spec.Running && j.waitsForAck:
		c.s.accept(j)
		return http.StatusOK
	case in.State == spec.Running:
		c.s.alive(j)
		return http.StatusOK
	case !final || j.waitsForAck:
		return http.StatusBadRequest
	}
	c.s.alive(j)
	if status := c.traceState(j, in.Output); status != http.StatusOK {
		return status
	}
	switch {
	case j.Status == Canceling:
		c.s.end(j, Canceled, "", 0)
	case in.State == spec.Success:
		c.s.end(j, Success, "", 0)
	default:
		reason := in.FailureReason
		if reason == "" {
			reason = spec.UnknownFailure
		}
		c.s.end(j, Failed, reason, in.ExitCode)
	}
	return http.StatusOK
}

var crc = regexp.MustCompile(`^crc32:[0-9a-f]{8}$`)

func (c *call) checkUpdate(j *job, in spec.Update, final bool) {
	switch {
	case in.FailureReason != "" && in.State != spec.Failed:
		c.note("failure_reason %s with state %s", in.FailureReason, in.State)
	case in.State == spec.Failed && in.FailureReason == "":
		c.note("state failed without a failure_reason")
	case in.FailureReason != "" && !slices.Contains(known, in.FailureReason) &&
		!slices.Contains(j.payload.Features.FailureReasons, string(in.FailureReason)):
		c.note("failure_reason %s is not among the three, nor those of features.failure_reasons", in.FailureReason)
	}
	if in.ExitCode != 0 && in.State != spec.Failed {
		c.note("exit_code %d with state %s", in.ExitCode, in.State)
	}
	if !final {
		return
	}
	if in.Output.Checksum != "" || in.Output.Bytesize != 0 {
		if !crc.MatchString(in.Output.Checksum) {
			c.note("output.checksum is %q, not crc32: and eight hexadecimal digits", in.Output.Checksum)
		}
		if in.Checksum != in.Output.Checksum {
			c.note("checksum is %q, output.checksum %q", in.Checksum, in.Output.Checksum)
		}
	} else if len(j.trace) > 0 {
		c.note("a final state without the checksum and size of the trace")
	}
	if time.Now().Before(j.repeatAt) {
		c.note("the final state again %v before the time that was told", time.Until(j.repeatAt).Round(time.Millisecond))
	}
}

// traceState says whether the trace is what the runner says: 202 while it is stored or a part is on its way, 412 if it
// must be sent again.
func (c *call) traceState(j *job, out spec.Output) int {
	wait := func() int {
		interval := c.s.o.UpdateInterval
		j.repeatAt = time.Now().Add(interval * 9 / 10)
		c.w.Header().Set(traceInterval, seconds(interval))
		return http.StatusAccepted
	}
	if j.patching {
		c.note("the final state while a part of the trace is on its way")
		return wait()
	}
	if j.finalPolls < c.s.o.FinalPolls {
		j.finalPolls++
		return wait()
	}
	if out.Checksum == "" || out.Checksum == checksum(j.crc) && out.Bytesize == len(j.trace) {
		return http.StatusOK
	}
	if !j.lost {
		c.note("the runner says that the trace is %d bytes, %s; it is %d, %s", out.Bytesize, out.Checksum,
			len(j.trace), checksum(j.crc))
	}
	j.cutTrace()
	j.lost = false
	j.expect = 0
	return http.StatusPreconditionFailed
}

// seconds is a duration as a header has it: whole seconds, at least one.
func seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}
