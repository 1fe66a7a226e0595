package wasm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/wasm/wire"
)

// Limits of compiling one module, and of how many are compiled at once.
const (
	compileTime    = 3 * time.Minute
	compileMemory  = 2 << 30 // bytes
	compileCPU     = 1000    // thousandths of a processor
	compilesAtOnce = 2
)

// StoreConfig is what a Store needs.
type StoreConfig struct {
	// Dir is the store's own.
	Dir string
	// Program is runnerd-wasm. What another one has compiled is removed.
	Program string
	// Open opens a sandbox, Image is one that has /tmp.
	Open  func(ctx context.Context, s sandbox.Spec) (sandbox.Sandbox, error)
	Image string
}

// Store keeps modules compiled, for all sandboxes of the machine, whosever they are.
//
// A compiled module is native code, so who could write one could run code in every sandbox that uses it. No job writes
// any: a module is compiled in a sandbox of its own, which is made for that and in which there is nothing else, and kept
// under the digest of its bytes, which the daemon has computed. A module that took the compiler over could change what is
// kept for itself, which only those run who wanted to run that very module. Jobs get it as a file open for reading.
type Store struct {
	cfg      StoreConfig
	version  func() (string, error) // the directory of what this Program has compiled
	turns    chan struct{}
	compiles singleflight.Group
	compiled atomic.Int64
}

// NewStore returns a store. Nothing is read before it is first used.
func NewStore(cfg StoreConfig) *Store {
	s := &Store{cfg: cfg, turns: make(chan struct{}, compilesAtOnce)}
	s.version = sync.OnceValues(s.open)
	return s
}

// ModuleError is why a module cannot be compiled, whoever tries.
type ModuleError struct{ reason string }

func (e *ModuleError) Error() string { return e.reason }

// Compiles is how many modules were compiled.
func (s *Store) Compiles() int64 { return s.compiled.Load() }

// open makes the directory of this version of the program, and removes those of others and what was not completed.
func (s *Store) open() (string, error) {
	program, err := os.Open(s.cfg.Program)
	if err != nil {
		return "", fmt.Errorf("the runtime of modules: %w: run \"make build\"", err)
	}
	defer program.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, program); err != nil {
		return "", err
	}
	dir := filepath.Join(s.cfg.Dir, hex.EncodeToString(sum.Sum(nil)[:8]))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	for _, pattern := range []string{filepath.Join(s.cfg.Dir, "*"), filepath.Join(dir, "new-*")} {
		found, _ := filepath.Glob(pattern)
		for _, path := range found {
			if path != dir {
				err = errors.Join(err, os.RemoveAll(path))
			}
		}
	}
	return dir, err
}

// Get returns a module compiled, and the name under which the engine looks for it. It is compiled unless it is kept, by
// one of those who ask at once. module is a sealed memory file that holds what digest says; it stays the caller's. An
// error that is a *ModuleError is the module's.
func (s *Store) Get(ctx context.Context, digest string, module *os.File) (key string, compiled *os.File, err error) {
	dir, err := s.version()
	if err != nil {
		return "", nil, err
	}
	if key, compiled, err = find(dir, digest); err == nil {
		return key, compiled, nil
	}
	own, err := verify(digest, module)
	if err != nil {
		return "", nil, err
	}
	var ours atomic.Bool
	result := s.compiles.DoChan(digest, func() (any, error) {
		ours.Store(true)
		defer own.Close()
		if key, kept, err := find(dir, digest); err == nil { // since we looked
			return key, kept.Close()
		}
		// It goes on for others when the first who wanted it gives up.
		return nil, s.compile(context.WithoutCancel(ctx), dir, digest, own)
	})
	select {
	case <-ctx.Done():
		return "", nil, context.Cause(ctx)
	case r := <-result:
		if !ours.Load() { // another's module was compiled
			own.Close()
		}
		if r.Err != nil {
			return "", nil, r.Err
		}
		return find(dir, digest)
	}
}

// find returns what is kept of a module, and notes that it was used.
func find(dir, digest string) (key string, compiled *os.File, err error) {
	at := filepath.Join(dir, digest)
	entries, err := os.ReadDir(at)
	if err != nil {
		return "", nil, err
	}
	if len(entries) != 1 || !wire.CheckKey(entries[0].Name()) {
		return "", nil, fmt.Errorf("%s does not hold one module", at)
	}
	key = entries[0].Name()
	if compiled, err = os.Open(filepath.Join(at, key)); err == nil {
		_ = os.Chtimes(at, time.Time{}, time.Now())
	}
	return key, compiled, err
}

// verify opens a module anew and holds it to its digest. It comes from a job's sandbox: only of a sealed memory file it is
// certain that reading it ends, and that it stays what it is.
func verify(digest string, module *os.File) (own *os.File, err error) {
	const sealed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	seals, err := unix.FcntlInt(module.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&sealed != sealed {
		return nil, errors.New("the runtime of modules sent a module in a file that is not sealed")
	}
	if own, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", module.Fd())); err != nil {
		return nil, err
	}
	sum := sha256.New()
	n, err := io.Copy(sum, io.NewSectionReader(own, 0, wire.MaxModule+1))
	switch {
	case err != nil:
	case n > wire.MaxModule:
		err = &ModuleError{fmt.Sprintf("it is larger than %d MiB", wire.MaxModule>>20)}
	case hex.EncodeToString(sum.Sum(nil)) != digest:
		err = errors.New("the runtime of modules sent another module than it says")
	}
	if err != nil {
		return nil, errors.Join(err, own.Close())
	}
	return own, nil
}

// compile compiles a module in a sandbox of its own and keeps what comes of it.
func (s *Store) compile(ctx context.Context, dir, digest string, module *os.File) (err error) {
	s.turns <- struct{}{}
	defer func() { <-s.turns }()
	s.compiled.Add(1)
	ctx, cancel := context.WithTimeoutCause(ctx, compileTime, fmt.Errorf("compiling the module takes longer than %s", compileTime))
	defer cancel()
	made, err := os.MkdirTemp(dir, "new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(made)
	out, err := os.OpenFile(filepath.Join(made, "compiled"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	defer out.Close()
	to := &output{file: out, left: wire.MaxCompiled}
	if err := s.compileIn(ctx, digest, module, to); err != nil {
		return err
	}
	key := strings.TrimSuffix(string(to.line), "\n")
	if to.left < 0 {
		return &ModuleError{fmt.Sprintf("compiled it is larger than %d MiB", wire.MaxCompiled>>20)}
	}
	if !wire.CheckKey(key) {
		return errors.New("the compiler did not say what it has made")
	}
	if err := os.Rename(out.Name(), filepath.Join(made, key)); err != nil {
		return err
	}
	at := filepath.Join(dir, digest)
	if err := os.RemoveAll(at); err != nil { // what find did not take
		return err
	}
	return os.Rename(made, at)
}

// compileIn compiles in a sandbox.
func (s *Store) compileIn(ctx context.Context, digest string, module *os.File, out io.Writer) (err error) {
	sb, err := s.cfg.Open(ctx, sandbox.Spec{
		ID: "wasm-" + digest[:24], Image: s.cfg.Image, Programs: map[string]string{wire.Program: s.cfg.Program},
		Limits: sandbox.Limits{CPU: compileCPU, Memory: compileMemory},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sb.Close(context.WithoutCancel(ctx))) }()
	said := sandbox.NewTail(1000)
	exit, err := sb.Exec(ctx, sandbox.Process{
		Args: []string{wire.Program, "compile"}, Env: []string{"TMPDIR=/tmp"}, Dir: "/", User: "65534:65534",
		Stdin: module, Stdout: out, Stderr: said,
	})
	switch {
	case err != nil:
		return fmt.Errorf("compile a module: %w", err)
	case exit.OOM:
		return fmt.Errorf("compiling the module takes more than %d MiB", compileMemory>>20)
	case exit.Signal == 0 && exit.Code == 1:
		return &ModuleError{said.String()}
	case !exit.Success():
		return fmt.Errorf("the compiler of modules ended with %s: %s", exit, said)
	}
	return nil
}

// output takes a line, and the rest of it into a file.
type output struct {
	line []byte // with its end
	file *os.File
	left int64
}

// maxLine is the longest line that is taken: a key and its end.
const maxLine = 65

func (o *output) Write(p []byte) (int, error) {
	rest := p
	for len(rest) > 0 && len(o.line) < maxLine {
		o.line, rest = append(o.line, rest[0]), rest[1:]
	}
	if o.left -= int64(len(rest)); o.left < 0 {
		return 0, io.ErrShortBuffer
	}
	if _, err := o.file.Write(rest); err != nil {
		return 0, err
	}
	return len(p), nil
}
