package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"sync"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// Upload uploads an artifact. That no file is there for it is no error. An error is an ArtifactError, the context's, or
// the sandbox's.
func (k *Kept) Upload(ctx context.Context, a spec.Artifact) error {
	k.notice("Uploading artifacts...")
	format := Format(a.Format)
	if format == "" {
		format = FormatZip
	}
	s := Selection{Paths: k.expand(a.Paths), Exclude: k.expand(a.Exclude), Format: format, Level: k.level()}
	name := artifactName(k.Variables.Expand(a.Name), format)
	if name == "" {
		return k.failed(fmt.Errorf("the artifacts' format %q is not known: use zip, gzip or raw", a.Format))
	}
	p, err := k.pack(ctx, s, a.Untracked)
	if err != nil {
		return k.packFailed(ctx, err)
	}
	k.tell(s, a.Untracked, p.Found())
	if p.Found().Entries == 0 {
		k.line(errorLevel(), "No files to upload")
		return p.Close()
	}
	u := &upload{k: k, selection: s, untracked: a.Untracked, first: p}
	err = k.Forge.UploadArtifact(ctx, ArtifactOptions{Name: name, Type: a.Type, Format: a.Format, ExpireIn: k.Variables.Expand(a.ExpireIn)},
		func(w io.Writer) error { return u.body(ctx, w) })
	u.end()
	doing := "Uploading artifacts to coordinator..."
	if a.Type != "" {
		doing = fmt.Sprintf("Uploading artifacts as %q to coordinator...", a.Type)
	}
	if err == nil {
		k.line(infoLevel(), doing+" 201 Created", field{"id", k.JobID})
		return nil
	}
	if failed := u.failure(); failed != nil || ctx.Err() != nil {
		return k.packFailed(ctx, failed)
	}
	return k.refused(doing, err)
}

// refused says why the forge does not take an artifact.
func (k *Kept) refused(doing string, err error) error {
	status := k.Forge.Status(err)
	level, why := errorLevel(), err
	switch status {
	case http.StatusForbidden:
		why = errors.New("permission denied")
	case http.StatusRequestEntityTooLarge:
		why = errors.New("too large: keep less, or raise the forge's maximum artifacts size")
	case http.StatusServiceUnavailable:
		why = errors.New("service unavailable")
	default:
		level = warnLevel()
	}
	k.line(level, doing+" "+statusText(status), field{"id", k.JobID})
	k.fatal("%v", why)
	return &ArtifactError{fmt.Errorf("upload artifacts: %w: %w", why, err)}
}

func statusText(status int) string {
	if status == 0 {
		return "error"
	}
	return fmt.Sprintf("%d %s", status, http.StatusText(status))
}

// packFailed tells apart what is the job's from what is the sandbox's.
func (k *Kept) packFailed(ctx context.Context, err error) error {
	var packing *PackError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &packing):
		return k.failed(packing)
	}
	return fmt.Errorf("pack artifacts: %w", err)
}

// failed ends an upload or a download as the helper does.
func (k *Kept) failed(err error) error {
	k.fatal("%v", err)
	return &ArtifactError{err}
}

// upload makes the body of an upload, as often as it is wanted.
type upload struct {
	k         *Kept
	selection Selection
	untracked bool

	mu    sync.Mutex
	first Packing // was begun to see whether there is anything
	err   error   // of packing
}

func (u *upload) take() (p Packing) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p, u.first = u.first, nil
	return p
}

func (u *upload) body(ctx context.Context, w io.Writer) error {
	p := u.take()
	if p == nil {
		var err error
		if p, err = u.k.pack(ctx, u.selection, u.untracked); err != nil {
			return u.fail(err)
		}
	}
	defer func() { _ = p.Close() }()
	_, err := io.Copy(w, reading{p, u})
	return err
}

// reading notes an error of reading, which is none of the forge's.
type reading struct {
	r io.Reader
	u *upload
}

func (r reading) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		_ = r.u.fail(err)
	}
	return n, err
}

func (u *upload) fail(err error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.err = err
	return err
}

func (u *upload) failure() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

func (u *upload) end() {
	if p := u.take(); p != nil {
		_ = p.Close()
	}
}

// artifactName is the name of an artifact's file; empty if the format is none (commands/helpers/artifacts_uploader.go).
func artifactName(name string, format Format) string {
	if name == "" {
		name = "artifacts"
	}
	if name = path.Base(name); name == "." || name == "/" {
		name = "default"
	}
	switch format {
	case FormatZip:
		return name + ".zip"
	case FormatGzip:
		return name + ".gz"
	case FormatRaw:
		return name
	}
	return ""
}

// level is that of ARTIFACT_COMPRESSION_LEVEL (commands/helpers/archive/fastzip).
func (k *Kept) level() int {
	const usual = 5
	switch name := k.Variables.Get("ARTIFACT_COMPRESSION_LEVEL"); name {
	case "fastest":
		return 0
	case "fast":
		return 1
	case "", "default":
		return usual
	case "slow":
		return 7
	case "slowest":
		return 9
	default:
		k.warn("compression level %q is invalid, falling back to default", name)
		return usual
	}
}
