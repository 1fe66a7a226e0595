// Package scope says who may share a cache with whom. Everything that is kept between jobs belongs to a scope;
// jobs of one scope share it, and nothing else may write it. A job's scope is computed by the daemon from what
// is known of where the job came from (Origin), never from what the job itself says.
package scope

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Trust is how far the code of a job has come: what is not known to be reviewed is untrusted.
type Trust string

// The levels of trust.
const (
	Untrusted Trust = "untrusted" // whatever anybody pushes: branches, merge requests, forks
	Trusted   Trust = "trusted"   // protected branches and tags, and what the machine's operator starts
)

// Local is the forge of jobs that come from this machine's own API and command line, Default their project
// when they name none.
const (
	Local   = "local"
	Default = "default"
)

// Scope is who may share a cache: the jobs of one project at one level of trust. The zero Scope belongs to
// nobody and may neither read nor write.
type Scope struct {
	Forge   string `json:"forge"`   // its host, such as gitlab.example.com; Local for none
	Project string `json:"project"` // as the forge names it, such as group/app
	Trust   Trust  `json:"trust"`
}

// String is the scope for people: "group/app", "gitlab.example.com/group/app (untrusted)".
func (s Scope) String() string {
	text := s.Project
	if s.Forge != Local {
		text = s.Forge + "/" + text
	}
	if s.Trust != Trusted {
		text += " (" + string(Untrusted) + ")"
	}
	return text
}

// IDLen is the length of an ID.
const IDLen = 16

// ID names the scope in file names, sandbox ids and keys: 16 hexadecimal digits. Projects are foreign text, so
// by their hash; each part is preceded by its length, so that no two scopes have one text.
func (s Scope) ID() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%s %d:%s %s", len(s.Forge), s.Forge, len(s.Project), s.Project, s.level()))
	return hex.EncodeToString(sum[:IDLen/2])
}

// level is Trust, with whatever is not Trusted taken for Untrusted.
func (s Scope) level() Trust {
	if s.Trust == Trusted {
		return Trusted
	}
	return Untrusted
}

// IsZero reports whether s belongs to nobody.
func (s Scope) IsZero() bool { return s.Forge == "" && s.Project == "" }

// SameProject reports whether s and t differ by their trust at most.
func (s Scope) SameProject(t Scope) bool {
	return !s.IsZero() && s.Forge == t.Forge && s.Project == t.Project
}

// Above is the scope that s may read besides itself, and never write; there is none above a trusted one.
func (s Scope) Above() (Scope, bool) {
	if s.IsZero() || s.level() == Trusted {
		return Scope{}, false
	}
	s.Trust = Trusted
	return s, true
}

// MayRead reports whether jobs of s may read what belongs to owner: their own, and what their project trusts.
func (s Scope) MayRead(owner Scope) bool {
	return s.SameProject(owner) && (s.level() == owner.level() || owner.level() == Trusted)
}

// MayWrite reports whether jobs of s may write what belongs to owner: their own only. A trusted job does not
// write an untrusted cache either: it would learn from it that others did.
func (s Scope) MayWrite(owner Scope) bool { return s.SameProject(owner) && s.level() == owner.level() }

// RefKind is what a job runs for.
type RefKind string

// The kinds of refs.
const (
	Branch       RefKind = "branch"
	Tag          RefKind = "tag"
	MergeRequest RefKind = "merge_request" // pull requests too
)

// Origin is what the daemon knows, from a forge or from who started it, of where a job came from.
type Origin struct {
	Forge     string  `json:"forge,omitempty" maxLength:"253" doc:"The forge's host; empty: none, the job is this machine's own."`
	Project   string  `json:"project,omitempty" maxLength:"500" doc:"As the forge names it; empty: default."`
	Kind      RefKind `json:"kind,omitempty" enum:"branch,tag,merge_request" doc:"What the job runs for."`
	Ref       string  `json:"ref,omitempty" maxLength:"500" doc:"The name of the branch or tag, for people."`
	Protected bool    `json:"protected,omitempty" doc:"The forge lets only maintainers write the ref."`
	Fork      bool    `json:"fork,omitempty" doc:"The code is another repository's."`
}

// Errors of Of.
var errEmpty = errors.New("the project is missing")

// Of computes the scope of a job. Only a protected branch or tag of the project itself is trusted. A job without
// a forge is this machine's own and is whatever its operator says with Protected.
func Of(o Origin) (Scope, error) {
	s := Scope{Forge: strings.ToLower(o.Forge), Project: o.Project, Trust: Untrusted}
	if s.Forge == "" {
		s.Forge = Local
	}
	if s.Project == "" {
		if s.Forge != Local {
			return Scope{}, errEmpty
		}
		s.Project = Default
	}
	for name, text := range map[string]string{"forge": s.Forge, "project": s.Project} {
		if !utf8.ValidString(text) || strings.ContainsFunc(text, unprintable) {
			return Scope{}, fmt.Errorf("the %s %q has characters that are not text", name, text)
		}
		if len(text) > 500 {
			return Scope{}, fmt.Errorf("the %s is longer than 500 bytes", name)
		}
	}
	if o.Protected && !o.Fork && o.Kind != MergeRequest {
		s.Trust = Trusted
	}
	return s, nil
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }
