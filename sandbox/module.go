package sandbox

import (
	"fmt"
	"path"
	"strings"
	"time"
)

// Module is what a WebAssembly module in a layer of the kind WASM may see and use, beside its arguments, its standard
// files and the environment of the Spec. The zero value declares nothing: no directory, and a clock that stands still.
type Module struct {
	// Dirs are the directories that it sees.
	Dirs []ModuleDir `json:"dirs,omitempty" maxItems:"64"`
	// Clock lets it read the time, and sleep. Without it each run begins at the same moment, and sleeping is all that passes
	// time, of which it takes none.
	Clock bool `json:"clock,omitempty"`
	// Memory is the most that its linear memory may grow to, in bytes, rounded down to 64 KiB; 0: DefaultModuleMemory.
	Memory int64 `json:"memory,omitempty" minimum:"0"`
	// Fuel is the processor time that one run may use, in nanoseconds; 0: DefaultModuleFuel.
	Fuel time.Duration `json:"fuel_ns,omitempty" minimum:"0"`
	// Time is how long one run may take, in nanoseconds; 0: as long as its job.
	Time time.Duration `json:"time_ns,omitempty" minimum:"0"`
}

// What a Module may use that does not say.
const (
	DefaultModuleMemory = 512 << 20 // bytes
	DefaultModuleFuel   = time.Hour // of processor time

	modulePage     = 64 << 10 // bytes (WebAssembly core specification 2.0, 4.2.8)
	maxModulePages = 1 << 16  // a 32-bit memory has no more
)

// ModuleDir is a directory that a module sees.
type ModuleDir struct {
	Path     string `json:"path" maxLength:"4096" doc:"In the sandbox, absolute."`
	At       string `json:"at,omitempty" maxLength:"4096" doc:"Where the module sees it, absolute; empty: at the same path."`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// ParseModuleDir reads PATH[:AT][:ro].
func ParseModuleDir(text string) (d ModuleDir, err error) {
	rest, ro := strings.CutSuffix(text, ":ro")
	d.ReadOnly = ro
	d.Path, d.At, _ = strings.Cut(rest, ":")
	return d, d.check()
}

func (d ModuleDir) check() error {
	for _, p := range []string{d.Path, d.Seen()} {
		if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsAny(p, ":\x00") {
			return fmt.Errorf("directory %q of a module: write it as PATH[:AT][:ro], with absolute paths such as /workspace:ro", p)
		}
	}
	return nil
}

// Seen is where the module sees the directory.
func (d ModuleDir) Seen() string {
	if d.At == "" {
		return d.Path
	}
	return d.At
}

// Check says what is wrong with m.
func (m Module) Check() error {
	seen := map[string]bool{}
	for _, d := range m.Dirs {
		if err := d.check(); err != nil {
			return err
		}
		if seen[d.Seen()] {
			return fmt.Errorf("two directories of a module are at %s", d.Seen())
		}
		seen[d.Seen()] = true
	}
	switch {
	case m.Memory < 0 || m.Fuel < 0 || m.Time < 0:
		return fmt.Errorf("the limits of a module must not be negative")
	case m.Memory > 0 && m.Memory < modulePage:
		return fmt.Errorf("a module's memory of %d bytes is less than one page of %d", m.Memory, modulePage)
	}
	return nil
}

// Pages is the limit of the linear memory, in pages of 64 KiB.
func (m Module) Pages() uint32 {
	memory := m.Memory
	if memory == 0 {
		memory = DefaultModuleMemory
	}
	return uint32(min(memory/modulePage, maxModulePages))
}

// CPU is the limit of the processor time.
func (m Module) CPU() time.Duration {
	if m.Fuel == 0 {
		return DefaultModuleFuel
	}
	return m.Fuel
}
