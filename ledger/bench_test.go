package ledger

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkAdd writes down builds of 25 steps, all cached, of one context.
func BenchmarkAdd(b *testing.B) {
	l, err := Open(b.Context(), Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	build := Build{Scope: trusted, Target: "app", Key: "app", Began: time.Now(), Ended: time.Now(), Manifests: map[string]Manifest{".": {Files: map[string]string{}}}}
	for i := range 25 {
		build.Steps = append(build.Steps, Step{Vertex: fmt.Sprint("sha256:", i), Key: fmt.Sprint(i), Name: "[2/3] RUN make", Args: []string{"/bin/sh", "-c", "make"}, Env: []string{"PATH=/bin"}, State: Cached})
	}
	for i := range 500 {
		build.Manifests["."].Files[fmt.Sprint("src/", i)] = "-rw-r--r-- 10240 6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
	}
	for i := 0; b.Loop(); i++ {
		build.Job = fmt.Sprint("j", i)
		l.Add(build)
		if err := l.flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
