package buildkit

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"syscall"

	"github.com/distribution/reference"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	solvererrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
)

// StepError is a build that failed by the user's doing: a command's exit code, a file or an image that is not
// there.
type StepError struct {
	Step string `json:"step"`          // as the Dockerfile has it
	Code int    `json:"code"`          // the command's exit code; 1 where there is none
	OOM  bool   `json:"oom,omitempty"` // BuildKit says that it was killed for want of memory
	Log  string `json:"log,omitempty"` // the last lines that the step wrote
	Err  error  `json:"-"`
	// Message is Err's, for those who read the Result.
	Message string `json:"message"`
}

func (e *StepError) Error() string { return e.Err.Error() }
func (e *StepError) Unwrap() error { return e.Err }

// makeRoom is how a full disk is mended.
const makeRoom = `raise builder.disk, or make room with "runnerd cache prune"`

var (
	noSpace      = regexp.MustCompile(`(?i)no space left on device`)
	missingImage = regexp.MustCompile(`(\S+): (?:not found|failed to do request: .*no such host|pull access denied|failed to authorize|.*insufficient_scope)`)
	refused      = regexp.MustCompile(`request to https?://([^/]+)/\S*: (?:401 Unauthorized|403 Forbidden)`)
	pushed       = regexp.MustCompile(`failed to push (\S+): `)
	loadMetadata = regexp.MustCompile(`^\[(?:internal|context \S+)\] load metadata for (\S+)`)
)

// classify tells the user's failures from ours. The user's are: a command's exit code, whatever else
// BuildKit blames on a step or a line of the Dockerfile, and an image that does not exist. Ours are a worker
// that has gone or is full, and everything between the last step and the registry.
func classify(err error, t *tally) error {
	step, log := t.failed(err)
	var exit *gatewaypb.ExitError
	switch text := err.Error(); {
	case errors.As(err, &exit):
		oom := exit.ExitCode == 137 && strings.Contains(text, syscall.ENOMEM.Error()) // executor/runcexecutor, on cgroup v2
		failed := &StepError{Step: step, Code: int(exit.ExitCode), OOM: oom, Log: log, Err: plain(err)}
		if noSpace.MatchString(log) {
			failed.Err = fmt.Errorf("a disk is full, the builder's unless the step has another: %s: %w", makeRoom, failed.Err)
		}
		return failed
	case grpcerrors.Code(err) == codes.Unavailable:
		return fmt.Errorf("the builder is gone: %w", err)
	case noSpace.MatchString(text):
		return fmt.Errorf("the builder's disk is full: %s: %w", makeRoom, err)
	case refused.MatchString(text):
		host := refused.FindStringSubmatch(text)[1] // or that of its tokens
		for _, image := range [][]string{pushed.FindStringSubmatch(text), loadMetadata.FindStringSubmatch(step)} {
			if image == nil {
				continue
			}
			if ref, err := reference.ParseNormalizedNamed(image[1]); err == nil {
				host = reference.Domain(ref)
			}
		}
		return &StepError{Step: step, Code: 1, Log: log, Err: fmt.Errorf(
			"registry %s wants other credentials, or gives this account no access: log in with 'docker login %s': %w", host, host, plain(err))}
	case loadMetadata.MatchString(step):
		image := loadMetadata.FindStringSubmatch(step)[1]
		if missingImage.MatchString(text) {
			return &StepError{Step: step, Code: 1, Log: log, Err: fmt.Errorf(
				"image %s does not exist, or its registry does not give it out: check FROM%s: %w", image, place(err), plain(err))}
		}
		return fmt.Errorf("image %s cannot be read: %w", image, err)
	case stepName.MatchString(step) || step == "" && len(solvererrdefs.Sources(err)) > 0:
		return &StepError{Step: step, Code: 1, Log: log, Err: plain(err)}
	default:
		return err
	}
}

// place is where in the Dockerfile an error comes from, if it says so.
func place(err error) string {
	for _, source := range solvererrdefs.Sources(err) {
		if source.Info != nil && len(source.Ranges) > 0 && source.Ranges[0].Start != nil {
			return fmt.Sprintf(" in %s:%d", source.Info.Filename, source.Ranges[0].Start.Line)
		}
	}
	return ""
}

// plain takes the words off an error that say how it came here, and keeps the error.
func plain(err error) error {
	text := err.Error()
	for _, prefix := range []string{"failed to run Build function: ", "failed to solve: "} {
		text = strings.ReplaceAll(text, prefix, "")
	}
	return plainError{text, err}
}

type plainError struct {
	text string
	err  error
}

func (e plainError) Error() string { return e.text }
func (e plainError) Unwrap() error { return e.err }
