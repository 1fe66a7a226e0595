package script

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// maxExpanded is how many bytes all references in variables together may become. Linux passes on 2 MiB of environment
// at most; without a limit, thirty variables that each hold the last one twice would be a gigabyte.
const maxExpanded = 16 << 20

// Variables are the variables of a job, expanded: each key once, with the value of the last that bore it.
type Variables struct {
	// BuildsDir, ProjectDir and TempDir are directories in the job's container: where projects are, where the job's
	// is, and where its file variables are.
	BuildsDir, ProjectDir, TempDir string

	list   []spec.Variable // expanded
	index  map[string]int  // into list
	tokens []string        // of the job, beside its variables
}

// expand returns the variables with their references expanded, nested ones too. A reference that leads back to itself
// stays as it is.
func expand(all []spec.Variable, tempDir string) (*Variables, error) {
	v := &Variables{TempDir: tempDir, index: make(map[string]int, len(all))}
	for _, variable := range all {
		if i, ok := v.index[variable.Key]; ok {
			v.list[i] = variable
			continue
		}
		v.index[variable.Key] = len(v.list)
		v.list = append(v.list, variable)
	}
	e := expansion{v: v, state: make([]expansionState, len(v.list))}
	for i := range v.list {
		e.resolve(i)
	}
	if e.size > maxExpanded {
		return nil, fmt.Errorf("expand the job's variables: they become more than %d MiB: have fewer of them refer to others", maxExpanded>>20)
	}
	return v, nil
}

type expansionState uint8

const (
	untouched expansionState = iota
	underway
	expanded
)

// expansion expands each variable once.
type expansion struct {
	v     *Variables
	state []expansionState
	size  int // bytes that references became
}

func (e *expansion) resolve(i int) {
	if e.state[i] != untouched {
		return
	}
	e.state[i] = underway
	if variable := &e.v.list[i]; !variable.Raw {
		variable.Value = os.Expand(variable.Value, e.lookup)
	}
	e.state[i] = expanded
}

func (e *expansion) lookup(name string) string {
	i, known := e.v.index[name]
	if known && !e.v.list[i].File {
		e.resolve(i)
		if e.state[i] == underway {
			return "$" + name
		}
	}
	if e.size > maxExpanded {
		return ""
	}
	value := e.v.Get(name)
	e.size += len(value)
	return value
}

// Get returns a variable's value, and for a file variable its file's path. It is empty for one that does not exist.
func (v *Variables) Get(name string) string {
	if name == "$" { // "$$" stands for a "$"
		return name
	}
	i, ok := v.index[name]
	if !ok {
		return ""
	}
	return v.environment(v.list[i])
}

// Value returns a variable's value, and for a file variable its file's content.
func (v *Variables) Value(name string) string {
	if i, ok := v.index[name]; ok {
		return v.list[i].Value
	}
	return ""
}

// Expand replaces $NAME and ${NAME} in a text, such as an image's name or a cache's key. "$$" becomes "$"; what is not
// known becomes nothing.
func (v *Variables) Expand(text string) string { return os.Expand(text, v.Get) }

// ExpandAll expands each of the texts.
func (v *Variables) ExpandAll(texts []string) []string {
	out := make([]string, len(texts))
	for i, t := range texts {
		out[i] = v.Expand(t)
	}
	return out
}

// All returns the variables, expanded.
func (v *Variables) All() []spec.Variable { return slices.Clone(v.list) }

// With returns these variables and one more, or with another value for one of them. No other is expanded anew.
func (v *Variables) With(name, value string) *Variables {
	w := *v
	w.list = slices.Clone(v.list)
	variable := spec.Variable{Key: name, Value: value, Public: true}
	if i, ok := v.index[name]; ok {
		w.list[i] = variable
		return &w
	}
	w.index = make(map[string]int, len(v.index)+1)
	for k, i := range v.index {
		w.index[k] = i
	}
	w.index[name] = len(w.list)
	w.list = append(w.list, variable)
	return &w
}

// Env is the environment of the job's processes: KEY=VALUE each, a file variable with its file's path.
func (v *Variables) Env() []string { return v.environ(v.list) }

// File is a file that must be there when the job's scripts run.
type File struct{ Path, Content string }

// Files are the file variables' files. Those of each script write them too.
func (v *Variables) Files() []File {
	var files []File
	for _, variable := range v.list {
		if variable.File && isName(variable.Key) {
			files = append(files, File{Path: v.environment(variable), Content: variable.Value})
		}
	}
	return files
}

// ServiceEnv is the environment of one of the job's services: the public variables of the job, and its own, which may
// refer to all of the job's.
func (v *Variables) ServiceEnv(own []spec.Variable) []string {
	var env []spec.Variable
	for _, variable := range v.list {
		if variable.Public {
			env = append(env, variable)
		}
	}
	own = slices.Clone(own)
	lookup := func(name string) string {
		for _, variable := range slices.Backward(own) {
			if variable.Key == name && !variable.File {
				return variable.Value
			}
		}
		return v.Get(name)
	}
	expanded := slices.Clone(own)
	for i := range expanded {
		if !expanded[i].Raw {
			expanded[i].Value = os.Expand(expanded[i].Value, lookup)
		}
	}
	return v.environ(append(env, expanded...))
}

// Masked are the values that no log may show: of masked variables, and the tokens and passwords that came with the job.
func (v *Variables) Masked() []string {
	masked := slices.Clone(v.tokens)
	for _, variable := range v.list {
		if variable.Masked && variable.Value != "" {
			masked = append(masked, variable.Value)
		}
	}
	slices.Sort(masked)
	return slices.Compact(masked)
}

func (v *Variables) environ(list []spec.Variable) []string {
	env := make([]string, 0, len(list))
	for _, variable := range list {
		if variable.Key == "" || strings.ContainsAny(variable.Key, "=\x00") {
			continue
		}
		env = append(env, variable.Key+"="+strings.ReplaceAll(v.environment(variable), "\x00", ""))
	}
	return env
}

// environment is what the job's processes see of a variable.
func (v *Variables) environment(variable spec.Variable) string {
	if variable.File {
		return path.Join(v.TempDir, variable.Key)
	}
	return variable.Value
}

// isName reports whether a shell can have a variable of this name.
func isName(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
