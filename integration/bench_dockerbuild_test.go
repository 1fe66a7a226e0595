//go:build integration && bench

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// benchDockerBuild measures "docker build" of an image whose every step is cached: in a fresh sandbox whose
// engine runs and has no image, with its project's builder, against an engine on the machine that has built it
// before. A build in the sandbox ends when the image is in the sandbox's engine.
func benchDockerBuild(t *testing.T) {
	d := startDaemon(t, "")
	bare, _ := startDockerd(t)
	defer bare.stop()
	for _, base := range []string{"debian:bookworm-slim", "node:20"} {
		dockerfile := "FROM " + base + "\nRUN head -c 4000000 /dev/urandom >/a\nRUN echo b >/b\nCOPY f /f\nRUN cat /f\n"
		dir := t.TempDir()
		for name, text := range map[string]string{"Dockerfile": dockerfile, "f": "f\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		bare.load(base)
		script := fmt.Sprintf("mkdir /tmp/c; cd /tmp/c; echo f >f; printf %%b %q >Dockerfile; docker version >/dev/null\n", dockerfile) +
			"for i in 1 2; do began=$(date +%s%N); docker build -q -t it . >/dev/null; echo $(($(date +%s%N) - began)); done"
		var again []time.Duration
		ours := func() time.Duration {
			stdout, stderr, code := d.script(nil, script)
			lines := strings.Fields(stdout)
			if code != 0 || len(lines) != 2 {
				t.Fatalf("exit code %d: %q %s", code, stdout, stderr)
			}
			var took [2]time.Duration
			for i, line := range lines {
				n, err := strconv.ParseInt(line, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				took[i] = time.Duration(n)
			}
			again = append(again, took[1])
			return took[0]
		}
		peer := func() time.Duration {
			cmd := bare.docker("build", "-q", "-t", "it", dir)
			plugins := filepath.Join(bare.dir, ".docker/cli-plugins")
			if err := os.MkdirAll(plugins, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(engineBinary(t, "docker-buildx"), filepath.Join(plugins, "docker-buildx")); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
			began := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatal(err, string(out))
			}
			return time.Since(began)
		}
		ours()
		peer()
		again = nil
		compare(t, "docker build, cached, "+base, 5, ours, peer, 1.2)
		absolute("  again in the same sandbox", millis(median(again)), "", true)
	}
}
