package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/runnerd/runnerd/runner"
)

func logOperation() *huma.Operation {
	return &huma.Operation{
		Method: http.MethodGet, Path: "/v1/jobs/{id}/log", OperationID: "job-log", Summary: "Read a job's log",
		Description: "As frames, or as text for those who accept only text/plain. A frame is a type (1 byte: 1 stdout, 2 stderr, 3 notice, 4 progress), the length of its data (4 bytes), its time in ns since 1970 (8 bytes), all big-endian, and the data.",
		Parameters: []*huma.Param{
			{Name: "id", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}},
			{Name: "follow", In: "query", Description: "Go on until the job is finished.", Schema: &huma.Schema{Type: huma.TypeBoolean}},
		},
		Responses: map[string]*huma.Response{
			"200":     {Description: "The log.", Content: map[string]*huma.MediaType{FramesType: {}, "text/plain": {}}},
			"default": problemResponse(),
		},
	}
}

func problemResponse() *huma.Response {
	return &huma.Response{Description: "A problem, RFC 9457.", Content: map[string]*huma.MediaType{"application/problem+json": {Schema: &huma.Schema{Ref: "#/components/schemas/ErrorModel"}}}}
}

func (s *Server) log(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	follow := false
	if text := r.URL.Query().Get("follow"); r.URL.Query().Has("follow") {
		var err error
		if follow, err = strconv.ParseBool(text); err != nil && text != "" {
			return fmt.Errorf("%w: follow: true or false is needed", ErrInvalid)
		}
		follow = follow || text == ""
	}
	if _, err := s.cfg.Backend.Get(r.Context(), id); err != nil {
		return err
	}
	write, kind := frameWriter(w), FramesType
	if accept := r.Header.Get("Accept"); strings.HasPrefix(accept, "text/plain") {
		write, kind = textWriter(w), "text/plain; charset=utf-8"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	c := http.NewResponseController(w)
	last := time.Now()
	err := s.cfg.Backend.Logs(r.Context(), id, follow, func(f runner.Frame) error {
		if err := write(f); err != nil {
			return err
		}
		// What is old is sent in bulk, what is new at once.
		if follow && (time.Since(f.Time) < time.Second || time.Since(last) > 100*time.Millisecond) {
			last = time.Now()
			return c.Flush()
		}
		return nil
	})
	if err != nil && r.Context().Err() == nil {
		s.cfg.Log.Warn("a log was not sent to its end", "id", id, "error", err)
		panic(http.ErrAbortHandler) // so that the client knows that something is missing
	}
	return nil
}

func frameWriter(w http.ResponseWriter) func(runner.Frame) error {
	var buf []byte
	return func(f runner.Frame) error {
		buf = Frame{Type: FrameType(f.Stream), Time: f.Time, Data: f.Data}.Append(buf[:0])
		_, err := w.Write(buf)
		return err
	}
}

// textWriter writes a log for people: all streams in one, and of a build what its steps are and say.
func textWriter(w http.ResponseWriter) func(runner.Frame) error {
	started := map[string]bool{}
	return func(f runner.Frame) error {
		switch f.Stream {
		case runner.Notice:
			_, err := fmt.Fprintf(w, "runnerd: %s", f.Data)
			return err
		case runner.Progress:
			var status struct {
				Vertexes []struct {
					Digest, Name, Error string
					Started             *time.Time
					Cached              bool
				} `json:"vertexes"`
				Logs []struct{ Data []byte } `json:"logs"`
			}
			if json.Unmarshal(f.Data, &status) != nil {
				return nil
			}
			for _, v := range status.Vertexes {
				if !started[v.Digest] && (v.Started != nil || v.Cached) {
					started[v.Digest] = true
					word := ""
					if v.Cached {
						word = "CACHED "
					}
					if _, err := fmt.Fprintf(w, "=> %s%s\n", word, v.Name); err != nil {
						return err
					}
				}
				if v.Error != "" {
					if _, err := fmt.Fprintf(w, "=> ERROR %s: %s\n", v.Name, v.Error); err != nil {
						return err
					}
				}
			}
			for _, l := range status.Logs {
				if _, err := w.Write(l.Data); err != nil {
					return err
				}
			}
			return nil
		}
		_, err := w.Write(f.Data)
		return err
	}
}
