package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Credentials are what a registry asks for.
type Credentials struct{ Username, Password string }

// sessionOpt says what the worker may ask for while it builds: directories, secrets, agents, credentials,
// and caches.
func (b Build) sessionOpt() (client.SolveOpt, error) {
	target := b.Plan.Targets[b.Target]
	opt := client.SolveOpt{
		LocalMounts: map[string]fsutil.FS{}, FrontendAttrs: attestations(target),
		SharedKey: target.Context, // under which the worker keeps what it was sent, to be sent only changes
	}
	context, err := b.open(target.Context)
	if err != nil {
		return opt, err
	}
	opt.LocalMounts[contextName] = context
	secrets := map[string][]byte{}
	for name, t := range b.Plan.Targets {
		if err := t.Allowed(); err != nil {
			return opt, fmt.Errorf("target %s: %w", name, err)
		}
		if err := b.offerDirs(opt.LocalMounts, t); err != nil {
			return opt, fmt.Errorf("target %s: %w", name, err)
		}
		for _, s := range t.Secrets {
			value, ok := b.Secrets[s.ID]
			if !ok {
				return opt, fmt.Errorf("secret %q has no value: give it with --secret id=%s,src=FILE or env=NAME", s.ID, s.ID)
			}
			secrets[s.ID] = value
		}
		for _, id := range t.SSH {
			if _, ok := b.SSH[id]; !ok {
				return opt, fmt.Errorf("ssh agent %q is not there: target %s needs it", id, name)
			}
		}
	}
	opt.Session = []session.Attachable{secretsprovider.FromMap(secrets), agents(b.SSH), authenticator{credentials: b.Auth}}
	for _, c := range target.CacheFrom {
		opt.CacheImports = append(opt.CacheImports, client.CacheOptionsEntry(b.cacheOption(c)))
	}
	for _, c := range target.CacheTo {
		opt.CacheExports = append(opt.CacheExports, client.CacheOptionsEntry(b.cacheOption(c)))
	}
	return opt, nil
}

// contextName is what the frontend calls the directory it takes files from.
const contextName = "context"

// offerDirs opens the directories that a target takes files from, but for its context. What .dockerignore
// excludes, or no instruction copies, the frontend does not ask for.
func (b Build) offerDirs(mounts map[string]fsutil.FS, t Target) error {
	offer := func(key, dir string) (err error) {
		if mounts[key] == nil {
			mounts[key], err = b.open(dir)
		}
		return err
	}
	if t.DockerfileInline == "" {
		dir, _, err := b.dockerfile(t)
		if err != nil {
			return err
		}
		if err := offer(dockerfileKey(dir), dir); err != nil {
			return err
		}
	}
	for _, c := range t.Contexts {
		if strings.HasPrefix(c, "target:") || strings.Contains(c, "://") {
			continue
		}
		if err := offer(localKey(c), c); err != nil {
			return err
		}
	}
	return nil
}

// open opens a directory in b.Dir. Its files belong to root in the build, as of docker buildx.
func (b Build) open(dir string) (fsutil.FS, error) {
	real, err := b.inside(dir)
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", dir, err)
	}
	local, err := fsutil.NewFS(filepath.Join(b.Dir, real))
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", dir, err)
	}
	return local, nil
}

// contextSessions offers the contexts of the targets that are linked to the one that is built, where they are
// other directories: the frontend knows only one by the name "context" in a session, so each has its own. It
// returns the sessions' ids by directory. They end with end.
func (b Build) contextSessions(ctx context.Context, c *client.Client) (ids map[string]string, end func(), err error) {
	ids = map[string]string{}
	var all []*session.Session
	end = func() {
		for _, s := range all {
			_ = s.Close()
		}
	}
	for _, t := range b.Plan.Targets {
		if t.Context == b.Plan.Targets[b.Target].Context || ids[t.Context] != "" {
			continue
		}
		dir, err := b.open(t.Context)
		if err == nil {
			dir, err = fsutil.NewFilterFS(dir, &fsutil.FilterOpt{Map: ownedByRoot})
		}
		if err != nil {
			return nil, end, err
		}
		s, err := session.NewSession(ctx, t.Context)
		if err != nil {
			return nil, end, err
		}
		s.Allow(filesync.NewFSSyncProvider(filesync.StaticDirSource{contextName: dir}))
		go func() { _ = s.Run(ctx, grpchijack.Dialer(c.ControlClient())) }()
		all = append(all, s)
		ids[t.Context] = s.ID()
	}
	return ids, end, nil
}

// ownedByRoot is what BuildKit's client does to the directories it is given (client/solve.go).
func ownedByRoot(_ string, st *fstypes.Stat) fsutil.MapResult {
	st.Uid, st.Gid = 0, 0
	return fsutil.MapResultKeep
}

// dockerfile tells the directory, relative to b.Dir, and the name of a target's Dockerfile, links followed.
func (b Build) dockerfile(t Target) (dir, name string, err error) {
	path, err := b.inside(filepath.Join(t.Context, t.Dockerfile))
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", filepath.Join(t.Context, t.Dockerfile), err)
	}
	return filepath.Dir(path), filepath.Base(path), nil
}

// Pathless takes the path off an error whose message names it already.
func Pathless(err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

// inside follows the links of a path in b.Dir; it returns what is relative to b.Dir again.
func (b Build) inside(path string) (string, error) {
	root, err := filepath.EvalSymlinks(b.Dir)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(filepath.Join(root, path))
	if err != nil {
		return "", Pathless(err)
	}
	rel, err := filepath.Rel(root, real)
	if err != nil || !filepath.IsLocal(rel) {
		return "", errors.New("it is outside the build's directory")
	}
	return rel, nil
}

// authenticator gives out a build's credentials, each to the host it is for.
type authenticator struct {
	auth.UnimplementedAuthServer // with which the worker fetches tokens itself
	credentials                  map[string]Credentials
}

func (a authenticator) Register(s *grpc.Server) { auth.RegisterAuthServer(s, a) }

// Credentials answers for a host; "registry-1.HOST" is HOST too, as Docker has it.
func (a authenticator) Credentials(_ context.Context, r *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	c, ok := a.credentials[r.Host]
	if !ok {
		c = a.credentials[strings.TrimPrefix(r.Host, "registry-1.")]
	}
	return &auth.CredentialsResponse{Username: c.Username, Secret: c.Password}, nil
}

// agents forwards ssh agents by id.
type agents map[string]Dial

func (a agents) Register(s *grpc.Server) { sshforward.RegisterSSHServer(s, a) }

func (a agents) CheckAgent(_ context.Context, r *sshforward.CheckAgentRequest) (*sshforward.CheckAgentResponse, error) {
	id := r.ID
	if id == "" {
		id = sshforward.DefaultID
	}
	if a[id] == nil {
		return nil, status.Errorf(codes.NotFound, "no ssh agent %q was given", id)
	}
	return &sshforward.CheckAgentResponse{}, nil
}

func (a agents) ForwardAgent(stream sshforward.SSH_ForwardAgentServer) error {
	id := sshforward.DefaultID
	if md, ok := metadata.FromIncomingContext(stream.Context()); ok {
		if v := md.Get(sshforward.KeySSHID); len(v) > 0 && v[0] != "" {
			id = v[0]
		}
	}
	dial := a[id]
	if dial == nil {
		return status.Errorf(codes.NotFound, "no ssh agent %q was given", id)
	}
	conn, err := dial(stream.Context())
	if err != nil {
		return fmt.Errorf("ssh agent %q: %w", id, err)
	}
	return sshforward.Copy(stream.Context(), conn, stream, nil)
}
