// Command admission is an admission policy (plugins.admission): engines are for trusted jobs of named projects only, and
// images have a tag or a digest.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// request is what runnerd asks about.
type request struct {
	Project   string `json:"project"`
	Untrusted bool   `json:"untrusted"`
	Sandbox   string `json:"sandbox"`
	Image     string `json:"image"`
}

type answer struct {
	Allow  bool   `json:"allow"`
	Reason string `json:"reason,omitempty"`
}

// withEngines are the projects whose jobs may have a Docker Engine.
var withEngines = []string{"default", "platform/images"}

func main() {
	var r request
	if err := json.NewDecoder(os.Stdin).Decode(&r); err != nil {
		fmt.Fprintln(os.Stderr, "read the request:", err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(decide(r)); err != nil {
		os.Exit(1)
	}
}

func decide(r request) answer {
	last := r.Image[strings.LastIndex(r.Image, "/")+1:]
	switch {
	case strings.Contains(r.Sandbox, "dind") && (r.Untrusted || !slices.Contains(withEngines, r.Project)):
		return answer{Reason: "jobs of " + r.Project + " have no engine: ask for the sandbox container"}
	case !strings.ContainsAny(last, ":@"):
		return answer{Reason: "the image " + r.Image + " has neither tag nor digest: name one"}
	}
	return answer{Allow: true}
}
