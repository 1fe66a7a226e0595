package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner/gitlab"
)

// reachTimeout bounds how long a forge may take to answer the doctor.
const reachTimeout = 5 * time.Second

// checkRunners asks whether the forges of the registered runners answer, and looks at their tokens' times.
func checkRunners(ctx context.Context, c *config.Config) finding {
	all, err := gitlab.ReadRegistrations(runnersDir(c.StateDir))
	if errors.Is(err, fs.ErrPermission) {
		return bad(warn, "sudo runnerd doctor", "the runners cannot be read: only root may")
	} else if err != nil {
		return bad(fail, "mend the files, or remove them and register the runners again", "%v", err)
	}
	if len(all) == 0 {
		return good("none is registered")
	}
	asked := map[string]error{} // by forge
	var wrong, mend []string
	for _, r := range all {
		if left := time.Until(r.TokenExpires); !r.TokenExpires.IsZero() && left <= 0 {
			wrong = append(wrong, fmt.Sprintf("%s: its token has expired", r.Name))
			mend = append(mend, "make a new runner in GitLab, and run 'runnerd unregister --keep-on-server "+r.Name+"' and 'runnerd register gitlab'")
		}
		key := r.URL + " " + r.CAFile
		err, known := asked[key]
		if !known {
			err = reach(ctx, r)
			asked[key] = err
		}
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: %v", r.Name, err))
			if !known {
				mend = append(mend, "check the URL, the network and the machine's proxy for "+r.URL)
			}
		}
	}
	if len(wrong) > 0 {
		return bad(warn, strings.Join(mend, "\n"), "%s", strings.Join(wrong, "\n"))
	}
	return good("%d, all of their forges answer; 'runnerd verify' asks whether they know the tokens", len(all))
}

// reach reports whether something answers at a runner's forge.
func reach(ctx context.Context, r gitlab.Registration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, reachTimeout, fmt.Errorf("no answer within %s", reachTimeout))
	defer cancel()
	c, err := gitlab.NewClient(r.URL, gitlab.ClientOptions{CAFile: r.CAFile})
	if err != nil {
		return err
	}
	return c.Reach(ctx)
}
