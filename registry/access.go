package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/runnerd/runnerd/scope"
)

// As is a header with which the operator asks as a scope would, and gets what that may: its value is AsScope's. From
// anybody else it says nothing.
const As = "Runnerd-As"

// AsScope is the value of As for a scope.
func AsScope(s scope.Scope) string {
	text, _ := json.Marshal(s) // three strings
	return string(text)
}

// The beginnings of repositories' names that mean something.
const (
	libraryPrefix = "library/" // Docker Hub's own images: the operator's alone
	mirrorPrefix  = "mirror/"  // what was fetched from elsewhere: mirror/HOST/REPOSITORY
	cachePrefix   = "cache/"   // cache/SCOPE-ID/…: build caches
)

// IsCache reports whether a repository is one of a scope's for what builds write: see CacheRepository.
func IsCache(repository string) bool { return strings.HasPrefix(repository, cachePrefix) }

// CacheRepository is a repository that a scope writes, and only it and the one below it read.
func CacheRepository(s scope.Scope, name string) string { return cachePrefix + s.ID() + "/" + name }

// actor is who asks. The zero actor is nobody, and may nothing.
type actor struct {
	operator bool
	scope    scope.Scope
}

// actor tells who asks from the address a connection comes from: every sandbox has one of its own, and what a forged
// one is answered never reaches the forger. The loopback is the operator's.
func (r *Registry) actor(req *http.Request) (actor, error) {
	a := actor{operator: r.who == nil}
	if !a.operator {
		from, err := netip.ParseAddrPort(req.RemoteAddr)
		if err != nil {
			return a, nil
		}
		if from.Addr().IsLoopback() || from.Addr().Unmap().IsLoopback() {
			a.operator = true
		} else if s, ok := r.who(from.Addr().Unmap()); ok {
			a.scope = s
		}
	}
	if as := req.Header.Get(As); as != "" && a.operator {
		a = actor{}
		if err := json.Unmarshal([]byte(as), &a.scope); err != nil {
			return a, fmt.Errorf("%s: %w", As, err)
		}
	}
	return a, nil
}

func (a actor) String() string {
	switch {
	case a.operator:
		return "the machine's operator"
	case a.scope.IsZero():
		return "who belongs to no job"
	}
	return a.scope.String()
}

// errDenied is wrapped by refusals.
var errDenied = errors.New("denied")

func denied(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDenied, fmt.Sprintf(format, args...))
}

// errNobodys is what readers of a repository get that nobody has pushed to.
var errNobodys = errors.New("there is no such repository")

// mayRead returns nil if a may read a repository, else errNobodys or an error that wraps errDenied.
func (r *Registry) mayRead(a actor, repository string) error {
	if a.operator {
		return nil
	}
	if a.scope.IsZero() {
		return denied("%s may not read %s: only jobs may", a, repository)
	}
	if id, ok := cacheOf(repository); ok {
		above, hasAbove := a.scope.Above()
		if id == a.scope.ID() || hasAbove && id == above.ID() {
			if _, ok := r.owners.of(repository); !ok {
				return errNobodys
			}
			return nil
		}
		return denied("%s is the cache of another scope than %s", repository, a)
	}
	o, ok := r.owners.of(repository)
	switch {
	case !ok:
		return errNobodys
	case o.Operator, a.scope.MayRead(o.Scope):
		return nil
	case a.scope.SameProject(o.Scope) && a.scope.Trust == scope.Trusted: // what its project's other jobs have built
		return nil
	case o.Scope.Trust == scope.Trusted && r.isShared(repository):
		return nil
	}
	return denied("%s belongs to %s, %s may not read it: registry.shared lists what all may read", repository, o, a)
}

// isShared reports whether other projects may read a repository.
func (r *Registry) isShared(repository string) bool {
	for _, pattern := range r.shared {
		if ok, err := path.Match(pattern, repository); ok && err == nil {
			return true
		}
	}
	return false
}

// mayClaim returns nil if a may write a repository that is its own or nobody's.
func mayClaim(a actor, repository string) error {
	if a.operator {
		return nil
	}
	if a.scope.IsZero() {
		return denied("%s may not write %s: only jobs may", a, repository)
	}
	if id, ok := cacheOf(repository); ok {
		if id == a.scope.ID() {
			return nil
		}
		return denied("%s is the cache of another scope than %s: its own is %s%s", repository, a, cachePrefix, a.scope.ID())
	}
	if strings.HasPrefix(repository, libraryPrefix) || strings.HasPrefix(repository, mirrorPrefix) {
		return denied("%s belongs to the machine's operator, %s may not write it: push to another name", repository, a)
	}
	return nil
}

// cacheOf returns the id of the scope whose cache a repository is.
func cacheOf(repository string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(repository, cachePrefix)
	if !ok {
		return "", false
	}
	id, _, _ = strings.Cut(rest, "/")
	return id, true
}

// refuse answers a request as the distribution specification has it.
func refuse(w http.ResponseWriter, err error) {
	var code errcode.Error
	switch {
	case errors.Is(err, errDenied):
		code = errcode.ErrorCodeDenied.WithMessage(err.Error())
	case errors.Is(err, errNobodys):
		code = errcode.ErrorCodeNameUnknown.WithMessage(err.Error())
	default:
		code = errcode.ErrorCodeUnavailable.WithMessage(err.Error())
	}
	_ = errcode.ServeJSON(w, code)
}
