package gitlab

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// handler is a transport that asks an http.Handler.
type handler http.HandlerFunc

func (h handler) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	defer func() { _ = r.Body.Close() }()
	w := httptest.NewRecorder()
	h(w, r)
	res := w.Result()
	res.Request = r
	return res, nil
}

func clientOf(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	c, err := NewClient("https://gitlab.example.com/sub", ClientOptions{Transport: handler(h), Info: spec.Info{Name: "runnerd", Features: spec.Features{Cancelable: true}}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestRunnerCalls is about the calls with a runner's token.
func TestRunnerCalls(t *testing.T) {
	registered := map[string]any{"id": 12, "token": "glrt-new", "token_expires_at": "2030-01-02T03:04:05.000Z"}
	for name, c := range map[string]struct {
		call   func(ctx context.Context, c *Client) (spec.Registered, error)
		method string
		path   string
		header string
		body   string // what it has to begin with, as JSON with sorted keys
		status int
		answer any
	}{
		"verify": {
			func(ctx context.Context, c *Client) (spec.Registered, error) { return c.Verify(ctx, "glrt-x", "s_0") },
			"POST", "runners/verify", "RUNNER-TOKEN", `"cancelable":true token system_id`, 200, registered,
		},
		"register": {
			func(ctx context.Context, c *Client) (spec.Registered, error) {
				return c.Register(ctx, spec.RegisterRequest{Token: "glrt-x", TagList: "a,b", Description: "d", RunUntagged: true})
			},
			"POST", "runners", "RUNNER-TOKEN", `"tag_list":"a,b" "run_untagged":true "cancelable":true`, 201, registered,
		},
		"unregister": {
			func(ctx context.Context, c *Client) (spec.Registered, error) {
				return spec.Registered{}, c.Unregister(ctx, "glrt-x")
			},
			"DELETE", "runners", "RUNNER-TOKEN", `{"token":"glrt-x"}`, 204, nil,
		},
		"unregister manager": {
			func(ctx context.Context, c *Client) (spec.Registered, error) {
				return spec.Registered{}, c.UnregisterManager(ctx, "glrt-x", "s_0")
			},
			"DELETE", "runners/managers", "RUNNER-TOKEN", `{"token":"glrt-x","system_id":"s_0"}`, 204, nil,
		},
		"reset": {
			func(ctx context.Context, c *Client) (spec.Registered, error) { return c.ResetToken(ctx, "glrt-x") },
			"POST", "runners/reset_authentication_token", "RUNNER-TOKEN", `{"token":"glrt-x"}`, 201, registered,
		},
		"reset as somebody": {
			func(ctx context.Context, c *Client) (spec.Registered, error) {
				return c.ResetTokenAs(ctx, 12, "glrt-x")
			},
			"POST", "runners/12/reset_authentication_token", "PRIVATE-TOKEN", "", 201, registered,
		},
	} {
		t.Run(name, func(t *testing.T) {
			status := c.status
			client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if r.Method != c.method || r.URL.Path != "/sub/api/v4/"+c.path || r.Header.Get(c.header) != "glrt-x" || !requestIDForm.MatchString(r.Header.Get("X-Request-Id")) {
					t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
				}
				for part := range strings.FieldsSeq(c.body) {
					if !strings.Contains(string(body), part) {
						t.Errorf("%s lacks %s", body, part)
					}
				}
				if status != c.status {
					w.Header().Set("X-Request-Id", "of-server")
					answer(w, status, map[string]any{"message": map[string]any{"runner": []string{"is wrong"}}})
				} else if c.answer == nil {
					w.WriteHeader(c.status)
				} else {
					answer(w, c.status, c.answer)
				}
			})
			got, err := c.call(t.Context(), client)
			if err != nil || c.answer != nil && (got.Token != "glrt-new" || got.ID != 12 || got.TokenExpiresAt == "") {
				t.Errorf("%+v %v", got, err)
			}
			for s, want := range map[int]error{403: ErrForbidden, 404: ErrNotFound, 410: ErrGone, 422: ErrUnprocessable} {
				status = s
				_, err := c.call(t.Context(), client)
				var e *StatusError
				if !errors.Is(err, want) || !errors.As(err, &e) || e.RequestID != "of-server" || !strings.Contains(e.Message, "is wrong") || strings.Contains(err.Error(), "glrt-x") {
					t.Errorf("%d: %v", s, err)
				}
			}
		})
	}
	t.Run("verify, answered in words", func(t *testing.T) {
		client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "200") })
		if got, err := client.Verify(t.Context(), "glrt-x", "s_0"); err != nil || got.Token != "glrt-x" {
			t.Errorf("%+v %v", got, err)
		}
	})
	t.Run("another answer in words is an error", func(t *testing.T) {
		client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201); _, _ = io.WriteString(w, "<html>") })
		if _, err := client.ResetToken(t.Context(), "glrt-x"); !errors.Is(err, errNotJSON) {
			t.Error(err)
		}
	})
	t.Run("redirections are not followed with a token", func(t *testing.T) {
		n := 0
		client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
			n++
			http.Redirect(w, r, "https://evil.example.com/", http.StatusTemporaryRedirect)
		})
		if _, err := client.Verify(t.Context(), "glrt-x", "s_0"); err == nil || n != 1 {
			t.Errorf("%v, %d requests", err, n)
		}
	})
}

func TestCallsAreObserved(t *testing.T) {
	var calls []Call
	c, err := NewClient("https://gitlab.example.com", ClientOptions{
		Observe:   func(k Call) { calls = append(calls, k) },
		Transport: handler(func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, "ok") }),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.UpdateJob(t.Context(), 123, spec.Update{State: spec.Running}); err != nil {
		t.Fatal(err)
	}
	if len(calls) != 1 || calls[0].Endpoint != "jobs/{id}" || calls[0].Status != 200 || calls[0].Method != "PUT" {
		t.Errorf("%+v", calls)
	}
}

// TestCA speaks with a server that signs its own certificate.
func TestCA(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, spec.Registered{ID: 1}) }))
	defer s.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(s.URL, ClientOptions{CAFile: file})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Verify(t.Context(), "glrt-x", "s_0"); err != nil {
		t.Error(err)
	}
	c.plain.CloseIdleConnections()
	c, err = NewClient(s.URL, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Verify(t.Context(), "glrt-x", "s_0"); err == nil {
		t.Error("an unknown certificate is accepted")
	}
	for _, bad := range []string{file + ".not", "client_test.go"} {
		if _, err := NewClient(s.URL, ClientOptions{CAFile: bad}); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

// TestUpload is about artifacts on their way to the server.
func TestUpload(t *testing.T) {
	job := spec.Job{ID: 7, Token: "job-token"}
	options := ArtifactOptions{Type: "junit", Format: "gzip", ExpireIn: "1 week", Name: "junit.xml.gz"}
	write := func(w io.Writer) error { _, err := io.WriteString(w, strings.Repeat("x", 100_000)); return err }
	// received checks an upload.
	received := func(t *testing.T, r *http.Request) {
		t.Helper()
		f, h, err := r.FormFile("file")
		if err != nil {
			t.Error(err)
			return
		}
		data, _ := io.ReadAll(f)
		if len(data) != 100_000 || h.Filename != "junit.xml.gz" {
			t.Errorf("%d bytes of %s", len(data), h.Filename)
		}
	}
	t.Run("201", func(t *testing.T) {
		c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
			if q := r.URL.Query(); r.URL.Path != "/sub/api/v4/jobs/7/artifacts" || r.Method != "POST" || q.Get("artifact_type") != "junit" || q.Get("artifact_format") != "gzip" ||
				q.Get("expire_in") != "1 week" || r.Header.Get("JOB-TOKEN") != "job-token" || r.ContentLength > 0 {
				t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
			}
			received(t, r)
			answer(w, 201, "ok")
		})
		if err := c.UploadArtifact(t.Context(), job, options, write); err != nil {
			t.Error(err)
		}
	})
	for name, c := range map[string]struct{ to, token string }{
		"of the same forge": {"/sub/api/v4/jobs/7/artifacts?elsewhere", "job-token"},
		"to another host":   {"https://objects.example.com/bucket", ""},
		"to another path":   {"/objects/1", ""},
		"by a detour":       {"https://gitlab.example.com/sub/api/v4/../../objects/1", ""},
	} {
		t.Run("307 "+name, func(t *testing.T) {
			n := 0
			client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
				if n++; n == 1 {
					w.Header().Set("Location", c.to)
					w.WriteHeader(http.StatusTemporaryRedirect)
					return
				}
				if last := c.to[strings.LastIndex(c.to, "/"):]; !strings.HasSuffix(r.URL.String(), last) || r.Header.Get("JOB-TOKEN") != c.token {
					t.Errorf("%s %v", r.URL, r.Header)
				}
				received(t, r)
				w.WriteHeader(201)
			})
			if err := client.UploadArtifact(t.Context(), job, options, write); err != nil || n != 2 {
				t.Errorf("%v, %d requests", err, n)
			}
		})
	}
	for status, c := range map[int]struct {
		tries int
		err   error
	}{503: {6, nil}, 413: {1, ErrTooLarge}, 403: {1, ErrForbidden}, 400: {1, nil}, 307: {6, nil}} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) { // without reading the body
					n++
					w.Header().Set("Location", "/again")
					w.WriteHeader(status)
				})
				err := client.UploadArtifact(t.Context(), job, options, write)
				if err == nil || n != c.tries || c.err != nil && !errors.Is(err, c.err) {
					t.Errorf("%v, %d tries", err, n)
				}
			})
		})
	}
	t.Run("503, and then it's ok", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
				if n++; n < 4 {
					w.WriteHeader(503)
					return
				}
				received(t, r)
				w.WriteHeader(201)
			})
			if err := client.UploadArtifact(t.Context(), job, options, write); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("its own error is not tried again", func(t *testing.T) {
		client := clientOf(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); w.WriteHeader(503) })
		wrong, n := errors.New("a file is gone"), 0
		if err := client.UploadArtifact(t.Context(), job, options, func(io.Writer) error { n++; return wrong }); err != wrong || n != 1 {
			t.Errorf("%v, %d calls", err, n)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) { cancel(ErrClosed); w.WriteHeader(503) })
		if err := client.UploadArtifact(ctx, job, options, write); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}

// TestDownload is about artifacts on their way to a job.
func TestDownload(t *testing.T) {
	dep := spec.Dependency{ID: 8, Token: "dep-token", Name: "build"}
	get := func(ctx context.Context, c *Client) (string, error) {
		var b bytes.Buffer
		err := c.DownloadArtifact(ctx, dep, &b)
		return b.String(), err
	}
	t.Run("200", func(t *testing.T) {
		c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.String() != "https://gitlab.example.com/sub/api/v4/jobs/8/artifacts?direct_download=true" || r.Header.Get("JOB-TOKEN") != "dep-token" {
				t.Errorf("%s %v", r.URL, r.Header)
			}
			_, _ = io.WriteString(w, "zip")
		})
		if text, err := get(t.Context(), c); err != nil || text != "zip" {
			t.Errorf("%q %v", text, err)
		}
	})
	for _, status := range []int{302, 307} {
		t.Run(fmt.Sprintf("%d: object storage sees no token", status), func(t *testing.T) {
			c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Host == "gitlab.example.com" {
					http.Redirect(w, r, "https://objects.example.com/a?X-Amz-Signature=1", status)
					return
				}
				if r.Header.Get("JOB-TOKEN") != "" || strings.Contains(fmt.Sprint(r.Header), "dep-token") || r.URL.Query().Get("X-Amz-Signature") != "1" {
					t.Errorf("%s %v", r.URL, r.Header)
				}
				_, _ = io.WriteString(w, "zip")
			})
			if text, err := get(t.Context(), c); err != nil || text != "zip" {
				t.Errorf("%q %v", text, err)
			}
		})
	}
	for status, c := range map[int]struct {
		tries int
		err   error
	}{401: {1, ErrUnauthorized}, 403: {1, ErrForbidden}, 404: {1, ErrNotFound}, 500: {5, nil}} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) { n++; w.WriteHeader(status) })
				if _, err := get(t.Context(), client); err == nil || n != c.tries || c.err != nil && !errors.Is(err, c.err) {
					t.Errorf("%v, %d tries", err, n)
				}
			})
		})
	}
	t.Run("redirections without an end, or elsewhere", func(t *testing.T) {
		for _, to := range []string{"/again", "file:///etc/passwd"} {
			synctest.Test(t, func(t *testing.T) {
				client := clientOf(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Location", to); w.WriteHeader(302) })
				if _, err := get(t.Context(), client); err == nil {
					t.Error("no error")
				}
			})
		}
	})
}

// TestRequestIsNotCutOff ends the context of a request whose answer has begun: the job is ours.
func TestRequestIsNotCutOff(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(201)
		w.(http.Flusher).Flush()
		time.Sleep(20 * time.Millisecond)
		cancel()
		time.Sleep(20 * time.Millisecond)
		_ = json.NewEncoder(w).Encode(spec.Job{ID: 1, Token: "t"})
	}))
	defer s.Close()
	c, err := NewClient(s.URL, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.plain.CloseIdleConnections()
	if g, err := c.RequestJob(ctx, spec.JobRequest{Token: fakeToken}); err != nil || g.Job == nil {
		t.Errorf("%+v %v", g, err)
	}
}
