package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

const (
	// downloadTries is how often a download is tried that breaks off, with downloadPause between, within one of
	// ARTIFACT_DOWNLOAD_ATTEMPTS, of which there are maxAttempts at most (gitlab-runner,
	// commands/helpers/artifacts_downloader.go and common/build.go). What has not begun the Forge has tried again itself.
	downloadTries = 3
	downloadPause = time.Second
	maxAttempts   = 10
)

// Download downloads and extracts what another job has left. A dependency without artifacts is nothing. An error is an
// ArtifactError, the context's, or the sandbox's.
func (k *Kept) Download(ctx context.Context, d spec.Dependency) (err error) {
	if !Downloads(d) {
		return nil
	}
	attempts, _ := strconv.Atoi(k.Variables.Get("ARTIFACT_DOWNLOAD_ATTEMPTS"))
	for range max(1, min(attempts, maxAttempts)) {
		k.notice("Downloading artifacts for %s (%d)...", d.Name, d.ID)
		if err = k.download(ctx, d); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (k *Kept) download(ctx context.Context, d spec.Dependency) error {
	const doing = "Downloading artifacts from coordinator..."
	id := field{"id", d.ID}
	for try := 1; ; try++ {
		var refused error
		var got received
		sum, err := k.Archiver.Extract(ctx, k.On, Target{Dir: k.Dir, User: k.User, Format: FormatZip}, -1, func(w io.Writer) error {
			got.Writer = w
			refused = k.Forge.DownloadArtifact(ctx, d, &got)
			return refused
		})
		var packing *PackError
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			k.line(infoLevel(), doing+" ok", id, field{"responseStatus", "200 OK"})
			k.extracted(sum)
			return nil
		case errors.As(err, &packing):
			return k.failed(fmt.Errorf("extract the artifacts of %s: %w", d.Name, packing))
		case refused == nil || !errors.Is(err, refused):
			return fmt.Errorf("extract the artifacts of %s: %w", d.Name, err)
		}
		why := ""
		switch k.Forge.Status(refused) {
		case http.StatusForbidden:
			err, why = errors.New("permission denied"), "forbidden"
		case http.StatusUnauthorized:
			err, why = errors.New("permission denied"), "unauthorized"
		case http.StatusNotFound:
			err, why = errors.New("file does not exist"), "not found"
		}
		if why != "" {
			k.line(errorLevel(), doing+" "+why, id, field{"status", statusText(k.Forge.Status(refused))})
			k.fatal("%v", err)
			return &ArtifactError{fmt.Errorf("download the artifacts of %s (%d): %s: %w", d.Name, d.ID, why, refused)}
		}
		k.line(warnLevel(), doing+" failed", id, field{"status", statusText(k.Forge.Status(refused))})
		if try == downloadTries || !got.some {
			k.fatal("%v", refused)
			return &ArtifactError{fmt.Errorf("download the artifacts of %s (%d): %w", d.Name, d.ID, refused)}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(downloadPause):
		}
		k.line(warnLevel(), "Retrying...", field{"error", refused})
	}
}

// received knows whether something has come.
type received struct {
	io.Writer
	some bool
}

func (r *received) Write(p []byte) (int, error) {
	r.some = r.some || len(p) > 0
	return r.Writer.Write(p)
}
