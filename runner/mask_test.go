package runner

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// rawMask is a Mask of these forms and no others, even short ones are fine from MinSecret on.
func rawMask(forms ...string) *Mask {
	forms = slices.Clone(forms)
	slices.Sort(forms)
	return compileMask(slices.Compact(forms))
}

// naiveMask hides forms in text in the plainest way.
func naiveMask(text string, forms []string) string {
	hidden := make([]bool, len(text))
	for _, f := range forms {
		for i := 0; i+len(f) <= len(text); i++ {
			if text[i:i+len(f)] == f {
				for k := range len(f) {
					hidden[i+k] = true
				}
			}
		}
	}
	var b strings.Builder
	for i := range len(text) {
		switch {
		case !hidden[i]:
			b.WriteByte(text[i])
		case i == 0 || !hidden[i-1]:
			b.WriteString(Masked)
		}
	}
	return b.String()
}

// maskIn masks text written in pieces that end at the given places.
func maskIn(m *Mask, text string, cuts ...int) string {
	var b strings.Builder
	w := m.Writer(&b)
	from := 0
	for _, c := range append(cuts, len(text)) {
		_, _ = io.WriteString(w, text[from:c])
		from = c
	}
	_ = w.Close()
	return b.String()
}

func TestMaskVectorsAtEverySplit(t *testing.T) {
	for _, v := range []struct {
		secrets    []string
		text, want string
	}{
		{[]string{"pass", "password"}, "my passpassword.", "my [MASKED]."},
		{[]string{"password"}, "passpassword", "pass[MASKED]"},
		{[]string{"aabaab"}, "aaabaabaab!", "a[MASKED]!"},
		{[]string{"ababc"}, "abababcab", "ab[MASKED]ab"},
		{[]string{"aaaa"}, "aaaaaaa aaa", "[MASKED] aaa"},
		{[]string{"abcd", "cdef"}, "abcdef", "[MASKED]"},
		{[]string{"abcd", "abcdefgh"}, "abcdefg", "[MASKED]efg"},
		{[]string{"abcdef", "cdefghij", "bcde"}, "xabcdefghiy", "x[MASKED]ghiy"},
		{[]string{"one\nsecret line\ntwo"}, "secret line", "[MASKED]"},
		{nil, "nothing", "nothing"},
	} {
		m := NewMask(v.secrets)
		for i := range len(v.text) + 1 {
			for k := i; k <= len(v.text); k++ {
				if got := maskIn(m, v.text, i, k); got != v.want {
					t.Fatalf("%q in %q cut at %d, %d: %q, want %q", v.secrets, v.text, i, k, got, v.want)
				}
			}
		}
	}
}

// TestMaskLikeNaive compares with the plainest implementation on texts over two and three letters, where
// everything overlaps, at all split points.
func TestMaskLikeNaive(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	word := func(letters, length int) string {
		b := make([]byte, length)
		for i := range b {
			b[i] = byte('a' + r.IntN(letters))
		}
		return string(b)
	}
	for range 3000 {
		letters := 1 + r.IntN(3)
		forms := make([]string, 1+r.IntN(6))
		for i := range forms {
			forms[i] = word(letters, MinSecret+r.IntN(8))
		}
		text := word(letters+r.IntN(2), r.IntN(40))
		m, want := rawMask(forms...), naiveMask(text, forms)
		for i := range len(text) + 1 {
			if got := maskIn(m, text, i); got != want {
				t.Fatalf("%q in %q cut at %d: %q, want %q", forms, text, i, got, want)
			}
		}
		every := make([]int, len(text))
		for i := range every {
			every[i] = i
		}
		if got := maskIn(m, text, every...); got != want {
			t.Fatalf("%q in %q byte by byte: %q, want %q", forms, text, got, want)
		}
	}
}

func TestMaskHoldsBackOnlyWhatMayBeASecret(t *testing.T) {
	var b strings.Builder
	w := NewMask([]string{"hunter22", "hunt the snark"}).Writer(&b)
	for _, step := range []struct{ write, sofar string }{
		{"the hun", "the "},
		{"t", "the "},
		{"s", "the hunts"},
		{" hunter2", "the hunts "},
		{"2", "the hunts [MASKED]"},
		{"\n", "the hunts [MASKED]\n"},
	} {
		_, _ = io.WriteString(w, step.write)
		if b.String() != step.sofar {
			t.Errorf("after %q: %q, want %q", step.write, b.String(), step.sofar)
		}
	}
}

func TestMaskFlush(t *testing.T) {
	var b strings.Builder
	w := NewMask([]string{"hunter22"}).Writer(&b)
	_, _ = io.WriteString(w, "> hunt")
	if err := w.Flush(); err != nil || b.String() != "> hunt" {
		t.Fatalf("flush: %q, %v", b.String(), err)
	}
	_, _ = io.WriteString(w, "er22 hunter22.")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error("closing twice:", err)
	}
	if want := "> hunt[MASKED] [MASKED]."; b.String() != want {
		t.Errorf("the rest of a secret whose beginning was flushed: %q, want %q", b.String(), want)
	}
	if _, err := io.WriteString(w, "x"); err == nil {
		t.Error("a write after Close succeeds")
	}
}

func TestMaskForms(t *testing.T) {
	secret := "s3cr&t/ü \"quo\\te\"<é>"
	multi := "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----\n"
	m := NewMask([]string{secret, multi, "abc", "x", ""})
	if m.Unmaskable() != 2 {
		t.Errorf("%d unmaskable secrets, want 2: abc and x", m.Unmaskable())
	}
	js, _ := json.Marshal(secret)
	for name, text := range map[string]string{
		"raw":        secret,
		"query":      url.QueryEscape(secret),
		"path":       url.PathEscape(secret),
		"lower":      lowerPercent(url.QueryEscape(secret)),
		"json":       string(js),
		"multi":      multi,
		"line":       "  kqhkiG9w0BAQEF",
		"terminal":   strings.ReplaceAll(multi, "\n", "\r\n"),
		"json multi": strings.ReplaceAll(multi, "\n", `\n`),
	} {
		got := m.String("<<" + text + ">>")
		for _, part := range []string{"s3cr", "quo", "MIIE", "kqhk"} {
			if strings.Contains(got, part) || !strings.Contains(got, Masked) {
				t.Errorf("%s: %q shows in %q", name, part, got)
			}
		}
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
		for _, s := range []string{secret, "abcd", "glpat-0123456789abcdef"} {
			m := NewMask([]string{s})
			for before := range 6 {
				for after := range 4 {
					text := enc.EncodeToString([]byte("user:<>"[:before] + s + "\xff\xfe\xfd"[:after]))
					got := m.String(text)
					// Of the base64 at most the characters shared with what is before and after remain.
					if rest := len(strings.ReplaceAll(got, Masked, "")); !strings.Contains(got, Masked) || rest > before*4/3+2+after*4/3+4 {
						t.Errorf("%q with %d bytes before and %d after: %q from %q", s, before, after, got, text)
					}
				}
			}
		}
	}
}

func TestMaskJSON(t *testing.T) {
	m := NewMask([]string{`tok"en42`, "hunter22"})
	in, err := json.Marshal(map[string]any{
		"logs":   []any{map[string]any{"data": []byte("the tok\"en42 is hunter22"), "n": 1234567890123456789}},
		"name":   `RUN echo tok"en42`,
		"digest": "sha256:0123",
	})
	if err != nil {
		t.Fatal(err)
	}
	var out struct {
		Logs []struct {
			Data []byte
			N    json.Number
		}
		Name, Digest string
	}
	if err := json.Unmarshal(m.JSON(in), &out); err != nil {
		t.Fatalf("what was JSON is no more: %v: %s", err, m.JSON(in))
	}
	if string(out.Logs[0].Data) != "the [MASKED] is [MASKED]" || out.Name != "RUN echo [MASKED]" || out.Digest != "sha256:0123" || out.Logs[0].N != "1234567890123456789" {
		t.Errorf("masked: %+v", out)
	}
	if same := []byte(`{"a": "nothing"}`); &m.JSON(same)[0] != &same[0] {
		t.Error("a text without a secret was copied")
	}
	if got := m.JSON([]byte("no json hunter22 {")); string(got) != "no json [MASKED] {" {
		t.Errorf("no JSON: %q", got)
	}
}

func TestMaskOfAWriterThatFails(t *testing.T) {
	w := NewMask([]string{"hunter22"}).Writer(failing{})
	if _, err := io.WriteString(w, "text hunter22 text"); err == nil {
		t.Error("the error of the writer below is lost")
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func FuzzMask(f *testing.F) {
	f.Add("passpassword", "pass", "password", uint8(5))
	f.Add("aaabaabaab", "aabaab", "abaa", uint8(3))
	f.Add("abababc", "ababc", "baba", uint8(4))
	f.Fuzz(func(t *testing.T, text, a, b string, cut uint8) {
		if len(a) < MinSecret || len(b) < MinSecret || len(text) > 1000 {
			return
		}
		got := maskIn(rawMask(a, b), text, min(int(cut), len(text)))
		if want := naiveMask(text, []string{a, b}); got != want {
			t.Fatalf("%q, %q in %q cut at %d: %q, want %q", a, b, text, cut, got, want)
		}
		if forms, _ := secretForms([]string{a, b}); strings.TrimSpace(a) == a && strings.TrimSpace(b) == b {
			if got, want := maskIn(NewMask([]string{a, b}), text, min(int(cut), len(text))), naiveMask(text, forms); got != want {
				t.Fatalf("all forms of %q, %q in %q: %q, want %q", a, b, text, got, want)
			}
		}
	})
}

// benchLog is 1 MiB of a build's log, with a secret now and then.
func benchLog(secrets []string) []byte {
	var b bytes.Buffer
	r := rand.New(rand.NewPCG(3, 4))
	for i := 0; b.Len() < 1<<20; i++ {
		switch {
		case i%200 == 0:
			fmt.Fprintf(&b, "export TOKEN=%s\n", secrets[r.IntN(len(secrets))])
		case i%7 == 0:
			fmt.Fprintf(&b, "#%d sha256:%016x%016x 12.3MB / 45.6MB 1.2s\n", i, r.Uint64(), r.Uint64())
		default:
			fmt.Fprintf(&b, "#%d 0.%d go: downloading github.com/some/module/v%d v1.%d.0 (from the proxy)\n", i, r.IntN(999), r.IntN(9), i)
		}
	}
	return b.Bytes()
}

func benchSecrets() []string {
	r := rand.New(rand.NewPCG(5, 6))
	secrets := make([]string, 100)
	for i := range secrets {
		secrets[i] = fmt.Sprintf("glpat-%016x%08x", r.Uint64(), r.Uint32())
		if i%2 == 0 {
			secrets[i] = base64.StdEncoding.EncodeToString([]byte(secrets[i]))[:24+r.IntN(8)]
		}
	}
	return secrets
}

func BenchmarkMask100Secrets(b *testing.B) {
	secrets := benchSecrets()
	m := NewMask(secrets)
	log := benchLog(secrets)
	for _, size := range []int{32 << 10, 4 << 10, 100} {
		b.Run(fmt.Sprintf("write=%d", size), func(b *testing.B) {
			w := m.Writer(io.Discard)
			b.SetBytes(int64(len(log)))
			b.ReportAllocs()
			for b.Loop() {
				for p := log; len(p) > 0; {
					n := min(size, len(p))
					_, _ = w.Write(p[:n])
					p = p[n:]
				}
			}
		})
	}
}

func BenchmarkMaskWorstCase(b *testing.B) {
	m := NewMask([]string{strings.Repeat("a", 64) + "b", strings.Repeat("a", 4096)})
	log := bytes.Repeat([]byte("a"), 1<<20)
	w := m.Writer(io.Discard)
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		_, _ = w.Write(log)
	}
}

func BenchmarkNewMask100Secrets(b *testing.B) {
	secrets := benchSecrets()
	b.ReportAllocs()
	for b.Loop() {
		NewMask(secrets)
	}
}
