package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"

	"github.com/tetratelabs/wazero"

	initwire "github.com/runnerd/runnerd/sandbox/initd/wire"
	"github.com/runnerd/runnerd/sandbox/wasm/wire"
)

// Server runs modules for a daemon, and keeps them compiled. It is safe for concurrent use.
type Server struct {
	dir   string // of wazero's cache, in which there is nothing but while a module is being compiled
	at    string // where in it wazero looks
	cache wazero.CompilationCache

	memories memories

	mu       sync.Mutex
	runtimes map[uint32]wazero.Runtime // by the pages that memories may have
	modules  map[moduleKey]*module
	known    map[string]fileID // modules' digests by path
}

type moduleKey struct {
	digest string
	pages  uint32
}

// module is one that is compiled once.
type module struct {
	mu       sync.Mutex
	compiled wazero.CompiledModule // nil: not yet
}

// NewServer returns a server. dir is where temporary files may be.
func NewServer(dir string) (*Server, error) {
	dir, err := os.MkdirTemp(dir, ".runnerd-wasm-")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, runtimes: map[uint32]wazero.Runtime{}, modules: map[moduleKey]*module{}, known: map[string]fileID{}}
	if s.cache, err = wazero.NewCompilationCacheWithDir(dir); err == nil {
		s.at, err = cacheDir(dir)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

// Serve runs what it is asked to until the daemon is gone; then all runs end.
func (s *Server) Serve(ctx context.Context, daemon *wire.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	var runs sync.WaitGroup
	defer func() {
		cancel()
		runs.Wait()
		_ = os.RemoveAll(s.dir)
	}()
	for {
		files, err := daemon.Receive(&wire.Start{})
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read from the daemon: %w", err)
		}
		if len(files) != wire.StartFiles {
			wire.CloseFiles(files)
			return fmt.Errorf("%d files came with a run, not %d", len(files), wire.StartFiles)
		}
		runs.Go(func() { s.serveRun(ctx, files) })
	}
}

// serveRun does one run. Whatever goes wrong is told on the run's standard error: nobody else is there to tell.
func (s *Server) serveRun(ctx context.Context, files []*os.File) {
	defer wire.CloseFiles(files)
	conn, err := wire.NewConn(files[0])
	if err != nil {
		return
	}
	defer conn.Close()
	r := run{Server: s, conn: conn, stdin: files[2], stdout: files[3], stderr: files[4]}
	text, err := initwire.ReadMemfile(int(files[1].Fd()))
	if err == nil {
		err = json.Unmarshal(text, &r.Run)
	}
	if err != nil {
		return // the daemon finds the conversation over
	}
	exit := r.run(ctx)
	wire.CloseFiles(files[1:]) // the daemon waits for the end of the output
	_ = conn.Send(wire.Ask{Exit: &exit})
}

// runtime is the one whose memories may have so many pages.
func (s *Server) runtime(ctx context.Context, pages uint32) (wazero.Runtime, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.runtimes[pages]; ok {
		return r, nil
	}
	r, err := newRuntime(context.WithoutCancel(ctx), s.cache, pages)
	if err == nil {
		s.runtimes[pages] = r
	}
	return r, err
}

// entry is the module of a digest, compiled or not.
func (s *Server) entry(key moduleKey) *module {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.modules[key]
	if !ok {
		m = &module{}
		s.modules[key] = m
	}
	return m
}

// compile compiles a module, or takes what somebody has compiled, which is in a file under the name key; nil: nobody.
func (s *Server) compile(ctx context.Context, r wazero.Runtime, data []byte, key string, compiled *os.File) (wazero.CompiledModule, error) {
	s.mu.Lock() // the directory
	defer s.mu.Unlock()
	if compiled != nil {
		if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", compiled.Fd()), s.at+"/"+key); err != nil {
			return nil, err
		}
	}
	m, err := r.CompileModule(ctx, data)
	// wazero has it in memory. What it compiled by itself is in the directory now, and was not asked for.
	entries, readErr := os.ReadDir(s.at)
	for _, e := range entries {
		readErr = errors.Join(readErr, os.Remove(s.at+"/"+e.Name()))
	}
	debug.FreeOSMemory() // compiling takes a hundred times what running takes
	return m, errors.Join(err, readErr)
}
