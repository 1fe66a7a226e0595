package gitlab

import (
	"io"
	"slices"
	"strings"

	"github.com/runnerd/runnerd/runner"
)

// The prefixes of GitLab's own tokens (gitlab-runner, common/buildlogger/internal/tokensanitizer): the first always,
// the rest unless the job sets FF_MASK_ALL_DEFAULT_TOKENS to false.
func tokenPrefixes(all bool) []string {
	if !all {
		return []string{"glpat-"}
	}
	return []string{
		"glpat-", "gloas-", "gldt-", "glrt-", "glcbt-", "glrtr-", "glptt-", "glft-", "glimt-", "glagent-", "glsoat-", "glffct-",
		"_gitlab_session=", "gltok-",
	}
}

// maxTokenPrefixes is how many prefixes of a server are heeded.
const maxTokenPrefixes = 15

// urlSecrets are the parameters of URLs whose values are hidden (gitlab-runner, …/internal/urlsanitizer).
func urlSecrets() []string {
	return []string{"private_token", "authenticity_token", "rss_token", "x-amz-signature", "x-amz-credential", "x-amz-security-token"}
}

// tokenRules say after which words a secret comes, and how far it goes. The word itself is shown. They may be used by
// several goroutines.
type tokenRules struct {
	rules  []tokenRule // the longest word first
	begins [256]bool   // the first bytes of all words
}

type tokenRule struct {
	word   string // in lower case if fold
	fold   bool   // case does not matter
	secret *[256]bool
}

// newTokenRules are the rules for a job: the server's prefixes, GitLab's own, and secrets in URLs.
func newTokenRules(server []string, all bool) *tokenRules {
	var token, value [256]bool
	for i := range 256 {
		c := byte(i)
		token[i] = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._=", c) >= 0
		value[i] = c > ' ' && c != 0x7f && c != '?' && c != '&'
	}
	prefixes := slices.DeleteFunc(slices.Clone(server), func(p string) bool { return p == "" })
	prefixes = append(prefixes[:min(len(prefixes), maxTokenPrefixes)], tokenPrefixes(all)...)
	t := &tokenRules{}
	for _, p := range prefixes {
		t.rules = append(t.rules, tokenRule{word: p, secret: &token})
	}
	for _, name := range urlSecrets() {
		for _, mark := range []string{"?", "&"} {
			t.rules = append(t.rules, tokenRule{word: mark + name + "=", fold: true, secret: &value})
		}
	}
	slices.SortStableFunc(t.rules, func(a, b tokenRule) int { return len(b.word) - len(a.word) })
	for _, r := range t.rules {
		t.begins[r.word[0]] = true
	}
	return t
}

// at looks for a word at the beginning of data: the rule, or nil, and whether one may yet come when there is more.
func (t *tokenRules) at(data []byte) (rule *tokenRule, more bool) {
	for i := range t.rules {
		r := &t.rules[i]
		n := min(len(r.word), len(data))
		if head := string(data[:n]); head != r.word[:n] && (!r.fold || strings.ToLower(head) != r.word[:n]) {
			continue
		}
		if n == len(r.word) {
			return r, more
		}
		more = true
	}
	return nil, more
}

// tokenMask hides what looks like a token, in one stream. It is not safe for several goroutines at once.
type tokenMask struct {
	rules *tokenRules
	w     io.Writer

	held   []byte     // what may be the beginning of a word
	hiding *[256]bool // the bytes of the secret that we are in
	hidden bool       // some of it was there
	out    []byte
}

// Write passes on p, but for what it hides and what may be the beginning of a word.
func (m *tokenMask) Write(p []byte) (int, error) {
	data := p
	if len(m.held) > 0 {
		data = append(m.held, p...)
	}
	m.out = m.out[:0]
	rest := m.scan(data)
	m.held = append([]byte(nil), data[rest:]...)
	if len(m.out) > 0 {
		if _, err := m.w.Write(m.out); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// scan puts what is decided of data into m.out, and returns where the undecided begins.
func (m *tokenMask) scan(data []byte) (rest int) {
	shown := 0 // data[:shown] is in out, or hidden
	for i := 0; i < len(data); {
		if m.hiding != nil {
			if m.hiding[data[i]] {
				if !m.hidden {
					m.out = append(m.out, runner.Masked...)
					m.hidden = true
				}
				i++
				shown = i
				continue
			}
			m.hiding = nil
		}
		if !m.rules.begins[data[i]] {
			i++
			continue
		}
		rule, more := m.rules.at(data[i:])
		switch {
		case more:
			m.out = append(m.out, data[shown:i]...)
			return i
		case rule == nil:
			i++
		default:
			i += len(rule.word)
			m.out = append(m.out, data[shown:i]...)
			shown, m.hiding, m.hidden = i, rule.secret, false
		}
	}
	m.out = append(m.out, data[shown:]...)
	return len(data)
}

// Flush passes on what is held back.
func (m *tokenMask) Flush() error {
	held := m.held
	m.held = nil
	if len(held) == 0 {
		return nil
	}
	_, err := m.w.Write(held)
	return err
}
