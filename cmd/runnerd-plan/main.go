// Command runnerd-plan reads the build files of one build, under limits, for runnerd: a buildkit.Input on its standard
// input, a buildkit.Outcome on its standard output. What reads bake files is as large as all of runnerd, and would be
// in its memory and in the start of each of its commands.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/runnerd/runnerd/buildkit/planfile"
)

func main() {
	if err := planfile.Process(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "runnerd-plan:", err)
		os.Exit(1)
	}
}
