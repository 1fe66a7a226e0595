package engine

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/experimental/sysfs"
	"github.com/tetratelabs/wazero/sys"

	"github.com/runnerd/runnerd/sandbox"
	initwire "github.com/runnerd/runnerd/sandbox/initd/wire"
	"github.com/runnerd/runnerd/sandbox/wasm/wire"
)

// Exit codes as a shell has them: of what is no program, and of one that is not there.
const (
	exitNoProgram = 126
	exitNotFound  = 127
)

// errEnded is why a run ends that the daemon no longer wants.
var errEnded = errors.New("the run was ended")

// run is one run of a module.
type run struct {
	*Server
	wire.Run
	conn                  *wire.Conn
	stdin, stdout, stderr *os.File
}

// fileID tells whether a file is the one whose digest is known.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
	digest       string
}

// settled is how long a file must have been as it is for its digest to be kept: one that is changed again within a tick
// of the file system's clock looks the same.
const settled = time.Second

// run runs the module to its end.
func (r *run) run(ctx context.Context) sandbox.Exit {
	m, code, err := r.module(ctx)
	if err != nil {
		r.say("%s: %v", r.name(), err)
		return sandbox.Exit{Code: code}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // there is nothing to receive but the end
		files, _ := r.conn.Receive(&struct{}{})
		wire.CloseFiles(files)
		cancel(errEnded)
	}()
	if limit := r.Module.Time; limit > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, limit, errTime)
		defer stop()
	}
	var exit sandbox.Exit
	burn(ctx, r.Module.CPU(), func(ctx context.Context) { exit = r.start(ctx, m) })
	return exit
}

func (r *run) name() string {
	if len(r.Args) > 0 {
		return r.Args[0]
	}
	return r.Path
}

func (r *run) say(format string, args ...any) {
	_, _ = fmt.Fprintf(r.stderr, "runnerd: "+format+"\n", args...)
}

// start instantiates the module, which runs it.
func (r *run) start(ctx context.Context, m wazero.CompiledModule) sandbox.Exit {
	config, closeRoots, err := r.config(ctx)
	if err != nil {
		r.say("%v", err)
		return sandbox.Exit{Code: exitNoProgram}
	}
	defer closeRoots()
	rt, err := r.runtime(ctx, r.Module.Pages())
	if err != nil {
		r.say("%v", err)
		return sandbox.Exit{Code: exitNoProgram}
	}
	instance, err := rt.InstantiateModule(experimental.WithMemoryAllocator(ctx, &r.memories), m, config)
	if instance != nil {
		_ = instance.Close(context.WithoutCancel(ctx))
	}
	var ended *sys.ExitError
	switch cause := context.Cause(ctx); {
	case err == nil:
		return sandbox.Exit{}
	case errors.As(err, &ended) && ended.ExitCode() != sys.ExitCodeContextCanceled && ended.ExitCode() != sys.ExitCodeDeadlineExceeded:
		return sandbox.Exit{Code: int(ended.ExitCode() & 0xff)}
	case errors.Is(cause, errFuel):
		r.say("%s: %v: %s of processor time", r.name(), cause, r.Module.CPU())
		return killed(syscall.SIGXCPU)
	case errors.Is(cause, errTime):
		r.say("%s: %v: %s", r.name(), cause, r.Module.Time)
		return killed(syscall.SIGALRM)
	case cause != nil:
		return killed(syscall.SIGKILL)
	}
	r.say("%s: %v", r.name(), err) // a trap, or what it imports is not there
	return killed(syscall.SIGABRT)
}

// killed is how a process would end that a signal has ended.
func killed(s syscall.Signal) sandbox.Exit { return sandbox.Exit{Code: 128 + int(s), Signal: s} }

// config is all that the module gets.
func (r *run) config(ctx context.Context) (_ wazero.ModuleConfig, closeRoots func(), err error) {
	c := wazero.NewModuleConfig().WithName("").WithArgs(r.Args...).
		WithStdin(r.stdin).WithStdout(r.stdout).WithStderr(r.stderr).WithRandSource(rand.Reader)
	for _, e := range r.Env {
		key, value, _ := strings.Cut(e, "=")
		if key != "" && key != "PWD" {
			c = c.WithEnv(key, value)
		}
	}
	var roots []*os.Root
	closeRoots = func() {
		for _, root := range roots {
			_ = root.Close()
		}
	}
	dirs := wazero.NewFSConfig()
	for _, d := range r.Module.Dirs {
		root, err := os.OpenRoot(d.Path)
		if err != nil {
			closeRoots()
			return nil, nil, fmt.Errorf("the module's directory %s: %w", d.Path, err)
		}
		roots = append(roots, root)
		if rel, err := filepath.Rel(d.Path, r.Dir); err == nil && filepath.IsLocal(rel) {
			c = c.WithEnv("PWD", filepath.Join(d.Seen(), rel)) // WASI has no working directory; Go's and Rust's libraries take this one
		}
		with, ok := dirs.(sysfs.FSConfig)
		if !ok {
			closeRoots()
			return nil, nil, errors.New("this wazero has no file systems of ours")
		}
		if d.ReadOnly {
			dirs = with.WithSysFSMount(&sysfs.ReadFS{FS: rootFS{root: root}}, d.Seen())
		} else {
			dirs = with.WithSysFSMount(rootFS{root: root}, d.Seen())
		}
	}
	c = withClock(ctx, c.WithFSConfig(dirs), r.Module.Clock)
	return c, closeRoots, nil
}

// module returns the module compiled. The exit code is for the error.
func (r *run) module(ctx context.Context) (_ wazero.CompiledModule, code int, err error) {
	digest, data := r.Digest, []byte(nil)
	if digest == "" {
		if digest, data, err = r.read(); errors.Is(err, fs.ErrNotExist) {
			return nil, exitNotFound, errors.New("no such file")
		}
	}
	if err != nil {
		return nil, exitNoProgram, err
	}
	rt, err := r.runtime(ctx, r.Module.Pages())
	if err != nil {
		return nil, exitNoProgram, err
	}
	m := r.entry(moduleKey{digest, r.Module.Pages()})
	m.mu.Lock() // the others wait
	defer m.mu.Unlock()
	if m.compiled != nil {
		return m.compiled, 0, nil
	}
	if data == nil && r.Digest != "" {
		data, err = r.artifact()
	} else if data == nil {
		var now string
		if now, data, err = r.readAll(); err == nil && now != digest {
			err = errors.New("it was changed while it was being read")
		}
	}
	if err != nil {
		return nil, exitNoProgram, err
	}
	answer, files, err := r.ask(wire.Ask{Need: wire.NeedCompiled, Digest: digest}, data)
	defer wire.CloseFiles(files)
	if err != nil {
		return nil, exitNoProgram, err
	}
	var compiled *os.File
	if wire.CheckKey(answer.Key) && len(files) == 1 {
		compiled = files[0]
	}
	if m.compiled, err = r.compile(ctx, rt, data, answer.Key, compiled); err != nil {
		return nil, exitNoProgram, err
	}
	return m.compiled, 0, nil
}

// ask asks the daemon, and sends a module with it if there is one.
func (r *run) ask(a wire.Ask, data []byte) (answer wire.Answer, files []*os.File, err error) {
	var with []*os.File
	if data != nil {
		file, err := initwire.Memfile(data)
		if err != nil {
			return answer, nil, err
		}
		defer file.Close()
		with = append(with, file)
	}
	if err := r.conn.Send(a, with...); err != nil {
		return answer, nil, err
	}
	if files, err = r.conn.Receive(&answer); err != nil {
		return answer, nil, errEnded
	}
	if answer.Error != "" {
		wire.CloseFiles(files)
		return answer, nil, errors.New(answer.Error)
	}
	return answer, files, nil
}

// artifact gets the module from the daemon.
func (r *run) artifact() ([]byte, error) {
	_, files, err := r.ask(wire.Ask{Need: wire.NeedModule}, nil)
	if err != nil {
		return nil, err
	}
	defer wire.CloseFiles(files)
	if len(files) != 1 {
		return nil, errors.New("the artifact did not come")
	}
	data, err := readModule(io.NewSectionReader(files[0], 0, wire.MaxModule+1))
	if err == nil && digestOf(data) != r.Digest {
		err = errors.New("the artifact is another one than its manifest says")
	}
	return data, err
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// open opens the module's file.
func (r *run) open() (*os.File, fileID, error) {
	name := r.Path
	if !filepath.IsAbs(name) {
		name = filepath.Join(r.Dir, name)
	}
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileID{}, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no file")
	}
	if err != nil {
		return nil, fileID{}, errors.Join(err, file.Close())
	}
	st := info.Sys().(*syscall.Stat_t)
	return file, fileID{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

// read returns the module's digest, and its bytes if they had to be read for that.
func (r *run) read() (digest string, data []byte, err error) {
	file, id, err := r.open()
	if err != nil {
		return "", nil, err
	}
	_ = file.Close()
	r.mu.Lock()
	known, ok := r.known[filepath.Join(r.Dir, r.Path)]
	r.mu.Unlock()
	if id.digest = known.digest; ok && id == known {
		return id.digest, nil, nil
	}
	return r.readAll()
}

// readAll reads the module.
func (r *run) readAll() (digest string, data []byte, err error) {
	file, id, err := r.open()
	if err != nil {
		return "", nil, err
	}
	defer file.Close()
	if data, err = readModule(file); err != nil {
		return "", nil, err
	}
	id.digest = digestOf(data)
	if time.Since(time.Unix(id.ctime.Unix())) > settled {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.known[filepath.Join(r.Dir, r.Path)] = id
	}
	return id.digest, data, nil
}
