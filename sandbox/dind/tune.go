package dind

import (
	"strings"

	"github.com/runnerd/runnerd/sandbox/container"
)

// Tuning is how the kernel is to treat the memory of engines. The zero value leaves it as it treats others'.
type Tuning struct {
	Merge      bool // equal pages of engines are shared by ksmd, if it runs
	SmallPages bool // no transparent huge pages
}

// command has the init start an engine with that.
func (t Tuning) command(engine []string) []string {
	var how []string
	if t.Merge {
		how = append(how, "merge")
	}
	if t.SmallPages {
		how = append(how, "small")
	}
	if len(how) == 0 {
		return engine
	}
	return append([]string{container.InitPath, "tune", strings.Join(how, ",")}, engine...)
}
