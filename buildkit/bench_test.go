package buildkit

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// BenchmarkCached builds what the worker has built before: by Build.Run, and by buildctl for comparison.
func BenchmarkCached(b *testing.B) {
	d := startDaemon(b)
	build := workspace(b, "Dockerfile", "FROM debian:bookworm-slim\nRUN echo 1 >/1\nCOPY file /\nRUN echo 2 >/2\n", "file", "text")
	d.run(b, build)
	b.Run("run", func(b *testing.B) {
		for b.Loop() {
			if r := d.run(b, build); r.Cached != 3 {
				b.Fatalf("%d steps cached", r.Cached)
			}
		}
	})
	b.Run("buildctl", func(b *testing.B) {
		for b.Loop() {
			out, err := exec.Command(filepath.Join(d.engines, "buildctl"), "--addr", "unix://"+d.socket, "build", "--progress", "plain",
				"--frontend", "dockerfile.v0", "--local", "context="+build.Dir, "--local", "dockerfile="+build.Dir).CombinedOutput()
			if err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
	})
}
