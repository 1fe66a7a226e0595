// Package registry is the registry that runnerd runs on its own machine, so that builds have base images,
// a cache and a place to push to without a network registry. It is distribution's registry
// (github.com/distribution/distribution/v3), as a library, on a directory.
package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	"github.com/distribution/distribution/v3/registry/storage"
	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // and the storage named below
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/scope"
)

// ErrClosed is what requests and calls after Close get.
var ErrClosed = errors.New("registry is closed")

// fileThreads bounds how many files are worked on at once, as distribution's own default does.
const fileThreads = 100

// Config says where a registry keeps its images and to whom it reports.
type Config struct {
	// Root is the directory of the images, made if missing. One process at a time may use it.
	Root string
	// Log gets the registry's warnings and errors; nil discards them. Refused requests, such as one for
	// an image that is not there, are the client's and are not logged above debug.
	Log *slog.Logger
	// Who says whose job an address is; false: nobody's. The loopback is the operator's. nil: everybody is the
	// operator.
	Who func(netip.Addr) (scope.Scope, bool)
	// Shared are patterns (path.Match) of repositories that trusted jobs push and all projects may read.
	Shared []string
	// Names are the hosts, with or without a port, by which the names of images mean this registry, and MirrorAt the
	// addresses (host:port) at which clients take it for Docker Hub.
	Names, MirrorAt []string
	// Upstreams are the registries whose images are fetched when they are asked for, and Refresh how long what a tag of
	// theirs means is taken for known.
	Upstreams []Upstream
	Refresh   time.Duration
}

// Registry serves the images in one directory. Make one with New; its methods may be called concurrently.
type Registry struct {
	root   string
	lock   *os.File
	app    *handlers.App
	log    *logSink
	who    func(netip.Addr) (scope.Scope, bool)
	shared []string
	owners *owners
	uses   *uses

	names, mirrorAt []string
	mirror          *mirror

	driver     storagedriver.StorageDriver
	store      distribution.Namespace // the same images as app's
	verified   verified
	leases     leases
	collecting sync.RWMutex // held while manifests must not come
	layouts    layouts

	mu       sync.Mutex
	closed   bool
	requests sync.WaitGroup

	stopPurge context.CancelFunc
	purged    chan struct{} // closed when purge has returned
}

// New opens the registry in c.Root. It listens nowhere: serve Handler. The context is used for opening
// only; Close ends the registry.
func New(ctx context.Context, c Config) (_ *Registry, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.Root == "" {
		return nil, errors.New("open registry: no directory for its images given")
	}
	root, err := filepath.Abs(c.Root)
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("open registry: %w: give it a directory that it may make and write", err)
	}
	lock, err := lockRoot(root)
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	sink := newLogSink(c.Log)
	// distribution panics on what it cannot use.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("open registry in %s: %v", root, p)
		}
		if err != nil {
			_ = lock.Close()
		}
	}()
	r := &Registry{
		root: root, lock: lock, log: sink, who: c.Who, shared: c.Shared, names: c.Names, mirrorAt: c.MirrorAt, purged: make(chan struct{}),
		driver:   filesystem.New(filesystem.DriverParameters{RootDirectory: root, MaxThreads: fileThreads}),
		verified: verified{blobs: map[digest.Digest]stamp{}}, leases: leases{all: map[string]time.Time{}},
	}
	if r.owners, err = openOwners(filepath.Join(root, "owners"), r.empty); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	if r.uses, err = openUses(filepath.Join(root, "uses.json")); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	detached := sink.context(context.WithoutCancel(ctx))
	if r.store, err = storage.NewRegistry(detached, r.driver, storage.EnableDelete); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	if r.mirror, err = newMirror(detached, c.Upstreams, c.Refresh); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	r.app = handlers.NewApp(detached, settings(root))
	var purging context.Context
	purging, r.stopPurge = context.WithCancel(context.WithoutCancel(ctx))
	go r.purge(purging)
	return r, nil
}

// settings is distribution's configuration. Its notifications, metrics, health checks, proxies and caches are
// off as long as nothing is said about them; a cache would gain nothing over the file system's own.
func settings(root string) *configuration.Configuration {
	return &configuration.Configuration{
		Storage: configuration.Storage{
			"filesystem":  {"rootdirectory": root},
			"delete":      {"enabled": true},
			"redirect":    {"disable": true},
			"maintenance": {"uploadpurging": map[any]any{"enabled": false}}, // see purge
		},
		// Signs the state of uploads, which clients hand back; those under way do not outlive a restart.
		HTTP: configuration.HTTP{Secret: rand.Text()},
	}
}

// Handler is the registry's HTTP API, the OCI distribution specification's /v2/. It asks for no
// credentials: the address that a connection comes from says who asks (Config.Who).
func (r *Registry) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !r.begin() {
			http.Error(w, ErrClosed.Error(), http.StatusServiceUnavailable)
			return
		}
		defer r.requests.Done()
		r.guard(w, req.WithContext(r.log.context(req.Context())))
	})
}

// begin counts a request, unless the registry is closed.
func (r *Registry) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.requests.Add(1)
	return true
}

// Close waits for requests under way, and refuses later ones; to cut them short, stop the server first. It
// is safe to call twice.
func (r *Registry) Close() error {
	r.mu.Lock()
	closed := r.closed
	r.closed = true
	r.mu.Unlock()
	r.mirror.stop(ErrClosed) // who waits for a fetch need not wait for its end
	r.requests.Wait()
	r.mirror.running.Wait()
	if closed {
		return nil
	}
	r.stopPurge()
	<-r.purged
	return errors.Join(r.uses.flush(), r.app.Shutdown(), closeEvents(r.app), r.lock.Close())
}

// lockRoot keeps other processes from the directory for as long as the file is open: two registries on one would
// each collect what the other is being given.
func lockRoot(root string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("another runnerd uses the registry in %s: give each a registry.root of its own", root)
		}
		return nil, err
	}
	return f, nil
}

// closeEvents ends the goroutine that distribution starts for notifications, even without any, and that its
// Shutdown forgets. There is no other way to the field that holds it; a later distribution without that
// field has nothing closed here, and TestCloseLeavesNothingRunning says whether that is right.
func closeEvents(app *handlers.App) error {
	field := reflect.ValueOf(app).Elem().FieldByName("events")
	if field.Kind() != reflect.Struct {
		return nil
	}
	if field = field.FieldByName("sink"); !field.IsValid() {
		return nil
	}
	sink, ok := reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem().Interface().(io.Closer)
	if !ok {
		return nil
	}
	return sink.Close()
}
