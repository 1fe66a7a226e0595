package planfile

import (
	"maps"
	"testing"

	"github.com/docker/buildx/util/buildflags"

	"github.com/runnerd/runnerd/buildkit"
)

// TestAnnotations compares buildkit.Annotations, which has to do without buildx, with what buildx itself reads.
func TestAnnotations(t *testing.T) {
	for _, text := range []string{
		"a=b", "a=", "org.opencontainers.image.source=https://example.com/a?b=c", "index:a=b", "manifest:a=b=c", "index,manifest:a.b=c",
		"manifest[linux/amd64]:a=b", "manifest[linux/arm/v7],index:a=b", "manifest-descriptor:a=b", "index-descriptor:a=b",
		"a", "", "nonsense:a=b", "manifest[linux/amd64:a=b", "manifest[no such]:a=b", ":a=b",
	} {
		want, wantErr := buildflags.ParseAnnotations([]string{text})
		got, err := buildkit.Annotations([]string{text})
		if (err != nil) != (wantErr != nil) {
			t.Errorf("%q: error %v, of buildx %v", text, err, wantErr)
			continue
		}
		if err != nil {
			continue
		}
		attrs := map[string]string{}
		for key, value := range want {
			attrs[key.String()] = value
		}
		if !maps.Equal(got, attrs) {
			t.Errorf("%q: %v, of buildx %v", text, got, attrs)
		}
	}
}
