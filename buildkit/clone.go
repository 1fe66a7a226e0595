package buildkit

import (
	"context"
	"fmt"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// What a clone has of another worker's state: copies of the databases (of BuildKit v0.34, cmd/buildkitd/main.go
// and worker/runc/runc.go), and behind links the layers and blobs.
const (
	workerDir      = "runc-overlayfs" // below StatePath
	basePath       = "/var/lib/buildkit-base"
	clonerPath     = "/dev/.runnerd-clone" // where no image has anything
	maxCloneCopies = 1 << 30               // bytes
)

var (
	cloneCopies = []string{
		"cache.db", workerDir + "/workerid", workerDir + "/metadata_v2.db", workerDir + "/containerdmeta.db",
		workerDir + "/snapshots/metadata.db",
	}
	cloneShows = map[string]string{
		basePath + "/snapshots": workerDir + "/snapshots/snapshots",
		basePath + "/content":   workerDir + "/content",
	}
)

// cloneSpec is the state of a worker that starts as a clone of another scope's.
func cloneSpec(cfg WorkersConfig, of scope.Scope) sandbox.Spec {
	return sandbox.Spec{
		Programs: map[string]string{clonerPath: cfg.Cloner},
		Base:     &sandbox.Base{State: workerID(of), Volume: StateVolume, Copy: cloneCopies, MaxBytes: maxCloneCopies, Show: cloneShows},
	}
}

// completeClone makes BuildKit's state of what the sandbox was given. It runs in the sandbox, since it reads what
// builds have caused to be written.
func completeClone(ctx context.Context, sb sandbox.Sandbox) error {
	log := sandbox.NewTail(4096)
	exit, err := sb.Exec(ctx, sandbox.Process{
		Args:   []string{clonerPath, StatePath + "/" + workerDir, basePath + "/snapshots", basePath + "/content"},
		Stdout: log, Stderr: log,
	})
	if err == nil && !exit.Success() {
		err = fmt.Errorf("clone a state: %s: %s", exit, log)
	}
	return err
}
