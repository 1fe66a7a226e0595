package main

import (
	"encoding"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// textFlag is a flag of a type that reads itself from text.
type textFlag[T any, P interface {
	*T
	encoding.TextUnmarshaler
	encoding.TextMarshaler
}] struct {
	value T
	set   bool
}

func (f *textFlag[T, P]) Set(text string) error {
	f.set = true
	return P(&f.value).UnmarshalText([]byte(text))
}

func (f *textFlag[T, P]) String() string {
	if !f.set {
		return ""
	}
	text, _ := P(&f.value).MarshalText()
	return string(text)
}

func (f *textFlag[T, P]) Type() string { return "value" }

// whoseFlags are those that say whose caches a job shares.
func whoseFlags(flags *pflag.FlagSet, w *api.Whose) {
	flags.StringVar(&w.Project, "project", "", "`PROJECT` whose caches are shared (default: default)")
	flags.BoolVar(&w.Untrusted, "untrusted", false, "read the project's caches only: nothing that is written outlives the project's untrusted jobs")
	flags.Var(originFlag{w}, "origin", "where a forge says the job comes from, instead of the two above: `forge=HOST,project=NAME[,kind=branch|tag|merge_request][,ref=NAME][,protected][,fork]`")
}

// originFlag reads a scope.Origin.
type originFlag struct{ *api.Whose }

func (f originFlag) Set(text string) error {
	o := &scope.Origin{}
	flags := map[string]*bool{"protected": &o.Protected, "fork": &o.Fork}
	texts := map[string]*string{"forge": &o.Forge, "project": &o.Project, "kind": (*string)(&o.Kind), "ref": &o.Ref}
	for part := range strings.SplitSeq(text, ",") {
		key, value, isText := strings.Cut(part, "=")
		switch {
		case isText && texts[key] != nil:
			*texts[key] = value
		case !isText && flags[key] != nil:
			*flags[key] = true
		default:
			return fmt.Errorf("%q is not known: use forge=, project=, kind=, ref=, protected and fork", part)
		}
	}
	f.Origin = o
	return nil
}

func (f originFlag) String() string { return "" }
func (f originFlag) Type() string   { return "origin" }

// limitFlags are those of a sandbox's limits.
type limitFlags struct {
	cpu          textFlag[config.CPU, *config.CPU]
	memory, disk textFlag[config.Size, *config.Size]
	pids         int64
}

func (l *limitFlags) register(flags *pflag.FlagSet) {
	flags.Var(&l.cpu, "cpu", "`PROCESSORS`, such as 1.5 or 500m")
	flags.Var(&l.memory, "memory", "`SIZE` of memory, such as 512MiB")
	flags.Var(&l.disk, "disk", "`SIZE` of the scratch disk, such as 10GiB")
	flags.Int64Var(&l.pids, "pids", 0, "`NUMBER` of processes and threads")
}

func (l *limitFlags) limits() sandbox.Limits {
	return sandbox.Limits{CPU: sandbox.MilliCPU(l.cpu.value), Memory: int64(l.memory.value), PIDs: l.pids, Disk: int64(l.disk.value)}
}

// moduleFlags are those of what WebAssembly modules may see and use.
type moduleFlags struct {
	dirs       []string
	clock      bool
	memory     textFlag[config.Size, *config.Size]
	fuel, time textFlag[config.Duration, *config.Duration]
}

func (m *moduleFlags) register(flags *pflag.FlagSet) {
	flags.StringArrayVar(&m.dirs, "module-dir", nil, "a directory of the sandbox that a module sees: `PATH`[:AT][:ro]; may be repeated")
	flags.BoolVar(&m.clock, "module-clock", false, "let a module read the time and sleep")
	flags.Var(&m.memory, "module-memory", "`SIZE` that a module's memory may grow to (default: 512MiB)")
	flags.Var(&m.fuel, "module-fuel", "processor `TIME` that a module may use (default: 1h)")
	flags.Var(&m.time, "module-time", "`DURATION` that a module may run (default: the job's timeout)")
}

func (m *moduleFlags) module() (sandbox.Module, error) {
	out := sandbox.Module{Clock: m.clock, Memory: int64(m.memory.value), Fuel: time.Duration(m.fuel.value), Time: time.Duration(m.time.value)}
	for _, text := range m.dirs {
		d, err := sandbox.ParseModuleDir(text)
		if err != nil {
			return out, fmt.Errorf("--module-dir: %w", err)
		}
		out.Dirs = append(out.Dirs, d)
	}
	return out, out.Check()
}

// terminal returns the descriptor of a stream, and whether it is a terminal.
func terminal(stream any) (fd int, is bool) {
	f, ok := stream.(*os.File)
	if !ok {
		return -1, false
	}
	return int(f.Fd()), term.IsTerminal(int(f.Fd()))
}

// terminalWidth is how many characters a line of a terminal has, 0 if w is none.
func terminalWidth(w io.Writer) int {
	fd, tty := terminal(w)
	if !tty {
		return 0
	}
	width, _, err := term.GetSize(fd)
	if err != nil {
		return 0
	}
	return width
}

// paint colours text for a terminal; see https://no-color.org.
func paint(w io.Writer, colour, text string) string {
	if _, tty := terminal(w); !tty || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// SGR parameters, ECMA-48 8.3.117.
const (
	green  = "32"
	yellow = "33"
	red    = "31"
)
