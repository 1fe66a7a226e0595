package api

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// The errors of workspaces.
var (
	ErrNoWorkspace = errors.New("no such workspace: upload it again")
	ErrTooLarge    = errors.New("too large")
)

// Limits of a workspace's names.
const (
	maxName  = 4096
	maxDepth = 200
)

// Workspaces keeps the contexts that clients have uploaded, each in a directory of its own. A workspace holds
// only directories, plain files, and symbolic links that lead nowhere outside of it.
type Workspaces struct {
	claims     sync.Map // ids that a build uses
	holds      holds
	dir        string
	maxBytes   int64
	maxEntries int64
}

// NewWorkspaces opens the store in dir, which it makes if need be. 0 means 16 GiB and 2,000,000 entries.
func NewWorkspaces(dir string, maxBytes, maxEntries int64) (*Workspaces, error) {
	if maxBytes == 0 {
		maxBytes = 16 << 30
	}
	if maxEntries == 0 {
		maxEntries = 2_000_000
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of workspaces: %w", err)
	}
	return &Workspaces{dir: dir, maxBytes: maxBytes, maxEntries: maxEntries}, nil
}

var workspaceID = regexp.MustCompile(`^[a-z0-9]{1,40}$`)

// Path returns where a workspace is, or an error that wraps ErrNoWorkspace.
func (ws *Workspaces) Path(id string) (string, error) {
	p := filepath.Join(ws.dir, id)
	if !workspaceID.MatchString(id) {
		return "", fmt.Errorf("workspace %q: %w", clip(id, 60), ErrNoWorkspace)
	}
	if fi, err := os.Lstat(p); err != nil || !fi.IsDir() {
		return "", fmt.Errorf("workspace %s: %w", id, ErrNoWorkspace)
	}
	return p, nil
}

// Remove removes a workspace. That there is none is no error.
func (ws *Workspaces) Remove(id string) error {
	if !workspaceID.MatchString(id) {
		return nil
	}
	// First out of sight, so that no build can begin on half of it.
	p := filepath.Join(ws.dir, id)
	gone := filepath.Join(ws.dir, partial+id)
	if err := os.Rename(p, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove workspace %s: %w", id, err)
	}
	return removeAll(gone)
}

// removeAll is os.RemoveAll, for directories without permissions too.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// partial begins the name of a directory that is no workspace yet, or no more.
const partial = ".partial-"

// list returns the ids of all workspaces, and removes what an earlier process did not finish.
func (ws *Workspaces) list() ([]string, error) {
	entries, err := os.ReadDir(ws.dir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), partial) {
			err = errors.Join(err, removeAll(filepath.Join(ws.dir, e.Name())))
		} else {
			ids = append(ids, e.Name())
		}
	}
	return ids, err
}

// Create makes a workspace from a tar stream. Of what goes wrong nothing is left. Errors wrap ErrInvalid or
// ErrTooLarge when they are the client's. Owners and set-id bits are not taken over.
func (ws *Workspaces) Create(r io.Reader) (_ Workspace, err error) {
	w := Workspace{ID: newID()}
	dir := filepath.Join(ws.dir, partial+w.ID)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return w, fmt.Errorf("make a workspace: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeAll(dir))
		}
	}()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return w, err
	}
	defer func() { _ = root.Close() }()
	x := extraction{Workspaces: ws, root: root, ws: &w}
	if err := x.all(r); err != nil {
		return w, err
	}
	if err := os.Rename(dir, filepath.Join(ws.dir, w.ID)); err != nil {
		return w, fmt.Errorf("make a workspace: %w", err)
	}
	return w, nil
}

type extraction struct {
	*Workspaces
	root  *os.Root
	ws    *Workspace
	links []string
	dirs  []*tar.Header
}

func (x *extraction) all(r io.Reader) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: the upload is no whole tar stream: %w", ErrInvalid, err)
		}
		if x.ws.Entries++; x.ws.Entries > x.maxEntries {
			return fmt.Errorf("the context has more than %d entries: exclude some in .dockerignore: %w", x.maxEntries, ErrTooLarge)
		}
		if err := x.entry(h, t); err != nil {
			return fmt.Errorf("context: %w", err)
		}
	}
	// Only now: a link may come before what it points to.
	for _, link := range x.links {
		if _, err := x.root.Stat(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			target, _ := x.root.Readlink(link)
			return fmt.Errorf("context: %w: symbolic link %q points to %q, which is outside of the context: exclude it in .dockerignore", ErrInvalid, link, target)
		}
	}
	for _, h := range slices.Backward(x.dirs) {
		_ = x.root.Chtimes(h.Name, h.ModTime, h.ModTime)
		if err := x.root.Chmod(h.Name, fs.FileMode(h.Mode)&0o777|0o700); err != nil {
			return err
		}
	}
	return nil
}

func (x *extraction) entry(h *tar.Header, r io.Reader) error {
	name := path.Clean(strings.TrimSuffix(h.Name, "/"))
	if len(h.Name) > maxName || strings.Count(name, "/") > maxDepth {
		return fmt.Errorf("%w: the name %q is too long", ErrInvalid, clip(h.Name, 80))
	}
	if name == "." && h.Typeflag == tar.TypeDir {
		return nil
	}
	if !filepath.IsLocal(name) || name != strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/") || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%w: the name %q leads out of the context or is not clean", ErrInvalid, h.Name)
	}
	if dir := path.Dir(name); dir != "." {
		if err := x.root.MkdirAll(dir, 0o755); err != nil {
			return userError(err, name)
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := x.root.MkdirAll(name, 0o755); err != nil {
			return userError(err, name)
		}
		if fi, err := x.root.Lstat(name); err != nil || !fi.IsDir() {
			return fmt.Errorf("%w: %q comes twice", ErrInvalid, name)
		}
		h.Name = name
		x.dirs = append(x.dirs, h)
	case tar.TypeReg:
		return x.file(name, h, r)
	case tar.TypeSymlink:
		if len(h.Linkname) > maxName {
			return fmt.Errorf("%w: the target of %q is too long", ErrInvalid, name)
		}
		if err := x.root.Symlink(h.Linkname, name); err != nil {
			return userError(err, name)
		}
		x.links = append(x.links, name)
	default:
		return fmt.Errorf("%w: %q is neither a file, a directory nor a symbolic link: exclude it in .dockerignore", ErrInvalid, name)
	}
	return nil
}

func (x *extraction) file(name string, h *tar.Header, r io.Reader) error {
	if x.ws.Bytes += h.Size; h.Size < 0 || x.ws.Bytes > x.maxBytes {
		return fmt.Errorf("larger than %d bytes: exclude something in .dockerignore: %w", x.maxBytes, ErrTooLarge)
	}
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return userError(err, name)
	}
	if _, err := io.Copy(f, r); err != nil {
		_ = f.Close()
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := errors.Join(f.Chmod(fs.FileMode(h.Mode)&0o777), f.Close()); err != nil {
		return err
	}
	return x.root.Chtimes(name, h.ModTime, h.ModTime)
}

// userError is the error of a name that cannot be made because of what came before it.
func userError(err error, name string) error {
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: %q comes twice", ErrInvalid, name)
	case strings.Contains(err.Error(), "path escapes"), strings.Contains(err.Error(), "not a directory"), strings.Contains(err.Error(), "too many levels"):
		return fmt.Errorf("%w: the name %q leads out of the context", ErrInvalid, name)
	}
	return err
}

func workspaceOperation() *huma.Operation {
	return &huma.Operation{
		Method: http.MethodPost, Path: "/v1/workspaces", OperationID: "upload-workspace", Summary: "Upload a context for a build",
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/x-tar": {}}},
		Responses: map[string]*huma.Response{
			"201": {Description: "The workspace. What no build uses is removed after an hour.", Content: map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Type: huma.TypeObject}}}},
			"413": problemResponse(), "422": problemResponse(), "default": problemResponse(),
		},
	}
}

// unusedWorkspace is how long an upload waits for its build.
const unusedWorkspace = time.Hour

func (s *Server) upload(w http.ResponseWriter, r *http.Request) error {
	if s.draining.Load() {
		return ErrDraining
	}
	if kind := r.Header.Get("Content-Type"); kind != "application/x-tar" {
		return huma.NewError(http.StatusUnsupportedMediaType, fmt.Sprintf("Content-Type %q: application/x-tar is needed", kind))
	}
	// Besides the caps on the content there is one on all that is read: 4 KiB of headers an entry.
	ws := s.cfg.Workspaces
	made, err := ws.Create(http.MaxBytesReader(w, r.Body, ws.maxBytes+ws.maxEntries*4096+1<<20))
	if err != nil {
		return err
	}
	s.cleanups.Go(func() {
		select {
		case <-time.After(unusedWorkspace):
			if !s.claimed(made.ID) {
				s.removeWorkspace(made.ID)
			}
		case <-s.ctx.Done():
		}
	})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	return json.NewEncoder(w).Encode(made)
}

func (s *Server) removeWorkspace(id string) {
	if err := s.cfg.Workspaces.Remove(id); err != nil {
		s.cfg.Log.Error("a workspace was not removed", "id", id, "error", err)
	}
}
