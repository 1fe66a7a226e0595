//go:build integration

package integration

import (
	"encoding/json"
	"testing"
)

// TestReproducible holds that an image whose Dockerfile is reproducible is the same, byte for byte, whether its
// steps run or come from a cache, and in whichever scope they do. Without rewrite-timestamp it is not, so the
// test would see a difference.
func TestReproducible(t *testing.T) {
	d := startDaemon(t, "")
	dir := files(t, "docker-bake.hcl", `
target "default" {
  args   = { SOURCE_DATE_EPOCH = "1700000000" }
  tags   = ["x.test/image:1"]
  output = ["type=image,rewrite-timestamp=true"]
}
target "dated" {
  inherits = ["default"]
  output   = ["type=image"]
}
`, "Dockerfile", `FROM debian:bookworm-slim AS build
COPY file /src/
RUN mkdir -p /out/sub && tr a-z A-Z </src/file >/out/sub/upper && ln -s upper /out/sub/link && sleep 1
FROM debian:bookworm-slim
COPY --from=build /out /srv
RUN sha256sum /srv/sub/upper >/srv/sum && chmod 600 /srv/sum
`, "file", "some text\n")
	digest := func(target string, args ...string) string {
		t.Helper()
		stdout := d.want(0, "", append([]string{"build", "--json", dir, target}, args...)...)
		var jobs []struct {
			Result struct {
				Detail struct {
					Digest        string
					Steps, Cached int
				}
			}
		}
		if err := json.Unmarshal([]byte(stdout), &jobs); err != nil || len(jobs) != 1 || jobs[0].Result.Detail.Digest == "" {
			t.Fatalf("%v: %s", err, stdout)
		}
		detail := jobs[0].Result.Detail
		t.Log(target, args, detail)
		return detail.Digest
	}
	first := digest("default")
	for _, args := range [][]string{
		{}, {"--no-cache"}, {"--untrusted"}, {"--untrusted", "--no-cache"}, {"--untrusted"}, {"--project", "other"},
	} {
		if again := digest("default", args...); again != first {
			t.Errorf("%v: %s, at first %s", args, again, first)
		}
	}
	if dated := digest("dated"); dated == digest("dated", "--no-cache") {
		t.Error("without rewrite-timestamp the digest is the same: this test shows nothing")
	}
}
