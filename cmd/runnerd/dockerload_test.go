package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// dialerTo is a sandbox whose engine is a test's server.
type dialerTo string

func (d dialerTo) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", string(d))
}

func TestJobEngineLoads(t *testing.T) {
	image := digest.FromString("image")
	pulls := "POST /images/create " + image.String()
	for name, x := range map[string]struct {
		names  []string
		has    bool   // the image is there
		answer string // to a pull
		want   []string
		err    string
	}{
		"new":                  {names: []string{"docker.io/library/a:1", "h:1/b:2"}, want: []string{"tag", pulls, "tag docker.io/library/a 1", "tag h:1/b 2", "DELETE r:1/load@" + image.String()}},
		"there":                {names: []string{"docker.io/library/a:1"}, has: true, want: []string{"tag docker.io/library/a 1"}},
		"without names":        {want: []string{"inspect", pulls}},
		"there, without names": {has: true, want: []string{"inspect"}},
		"no pull":              {answer: `{"errorDetail":{"message":"no space left on device"}}`, want: []string{"inspect", pulls}, err: "no space left on device"},
		"talks":                {answer: `{"status":"` + strings.Repeat("x", maxEngineAnswer) + `"}`, want: []string{"inspect", pulls}, err: errTalkative.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			var calls []string
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				query, path := r.URL.Query(), strings.TrimPrefix(r.URL.Path, "/v"+engineAPI)
				switch {
				case path == "/images/create":
					x.has = true
					calls = append(calls, r.Method+" "+path+" "+query.Get("tag"))
					fmt.Fprintln(w, x.answer)
				case r.Method == http.MethodDelete:
					calls = append(calls, "DELETE "+strings.TrimPrefix(path, "/images/"))
					fmt.Fprint(w, "[]")
				case !x.has:
					calls = append(calls, strings.NewReplacer("json", "inspect").Replace(path[strings.LastIndex(path, "/")+1:]))
					http.Error(w, `{"message":"no such image"}`, http.StatusNotFound)
				case strings.HasSuffix(path, "/json"):
					calls = append(calls, "inspect")
					fmt.Fprint(w, "{}")
				default:
					calls = append(calls, "tag "+query.Get("repo")+" "+query.Get("tag"))
					w.WriteHeader(http.StatusCreated)
				}
			}))
			defer s.Close()
			e := &jobEngine{sandbox: dialerTo(s.Listener.Addr().String()), loads: make(chan struct{}, 1), naming: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler)}
			err := e.Load(t.Context(), "r:1/load", image, x.names)
			if x.err == "" && err != nil || x.err != "" && (err == nil || !strings.Contains(err.Error(), x.err)) {
				t.Errorf("got %.200v, want %q", err, x.err)
			}
			if !slices.Equal(calls, x.want) {
				t.Errorf("the engine was asked %q, want %q", calls, x.want)
			}
		})
	}
}

// TestJobEngineWithoutRegistry has nowhere to push to.
func TestJobEngineWithoutRegistry(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &jobEngine{repository: "r:1/load", address: l.Addr().String()}
	if got, err := e.Repository(t.Context()); got != "r:1/load" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Repository(t.Context()); err == nil || !strings.Contains(err.Error(), "registry.address") {
		t.Error(err)
	}
	if _, err := (&jobEngine{address: e.address}).Repository(t.Context()); err == nil {
		t.Error("a job of no project has a repository")
	}
}
