package registry

import (
	"bytes"
	"io"
	"net/http"
)

// inProcess is an http.RoundTripper that calls a handler. Request bodies are streamed, answers are held
// in memory, so it is for pushing and asking, not for pulling layers.
type inProcess struct{ to http.Handler }

func (t inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	in := req.Clone(req.Context())
	in.RequestURI, in.RemoteAddr = req.URL.RequestURI(), "127.0.0.1:0" // the operator's
	if in.Host == "" {
		in.Host = req.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	defer in.Body.Close()
	a := answer{header: make(http.Header)}
	t.to.ServeHTTP(&a, in)
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	a.WriteHeader(http.StatusOK)
	return &http.Response{
		Status: http.StatusText(a.status), StatusCode: a.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.sent, Body: io.NopCloser(&a.body), ContentLength: a.length(req), Request: req,
	}, nil
}

// answer is the http.ResponseWriter of one request.
type answer struct {
	header, sent http.Header
	status       int
	body         bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status, a.sent = status, a.header.Clone()
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}

// length is what Content-Length says, which for HEAD is not that of the body.
func (a *answer) length(req *http.Request) int64 {
	if req.Method == http.MethodHead {
		return contentLength(a.sent)
	}
	return int64(a.body.Len())
}
