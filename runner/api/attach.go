package api

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
)

func attachOperation() *huma.Operation {
	return &huma.Operation{
		Method: http.MethodPost, Path: "/v1/jobs/{id}/attach", OperationID: "attach", Summary: "Be the terminal of an attached job",
		Description: "The connection is upgraded to " + Protocol + ": frames in both directions. The client sends 0x10 stdin, 0x11 end of stdin, 0x12 signal, 0x13 resize; " +
			"the server 1 stdout, 2 stderr, 3 a sentence of runnerd's own about the job, 0x20 window, 0x21 state, 0x22 result, 0x23 error. The client may send 262,144 bytes of standard input, and more as windows come. " +
			"The job is cancelled when the client goes away before the result.",
		Parameters: []*huma.Param{
			{Name: "id", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}},
			{Name: "Upgrade", In: "header", Required: true, Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{Protocol}}},
		},
		Responses: map[string]*huma.Response{"101": {Description: "Frames follow."}, "409": problemResponse(), "426": problemResponse(), "default": problemResponse()},
	}
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) error {
	s.attached.Add(1)
	defer s.attached.Done()
	id := r.PathValue("id")
	if err := upgradable(w, r, Protocol); err != nil {
		return err
	}
	job, err := s.cfg.Backend.Get(r.Context(), id)
	if err != nil {
		return err
	}
	if !job.Attach {
		return huma.NewError(http.StatusConflict, fmt.Sprintf("job %s was not submitted to be attached: read its log instead", id))
	}
	// Not the request's context: that ends with the hijack.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	defer cancel(nil)
	infos, err := s.cfg.Backend.Watch(ctx, id)
	if err != nil {
		return err
	}
	session := newSession()
	if job.State != runner.Finished {
		if err := s.cfg.Attachments.attach(id, session); err != nil {
			return err
		}
		defer s.cfg.Attachments.forget(id)
	}
	conn, err := upgrade(w, Protocol)
	if err != nil {
		s.cancelFor(id, "its client could not be attached")
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(r.Context(), func() { _ = conn.Close() })() // the server stops

	written := make(chan struct{})
	go func() { defer close(written); session.write(conn) }()
	go func() {
		err := session.read(conn)
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) { // read ends with an error only
			s.cfg.Log.Debug("attached client", "id", id, "error", err)
		}
		session.leave()
		_ = conn.Close()
	}()
	finished := session.states(ctx, infos)
	close(session.last)
	if finished {
		<-written
		return nil
	}
	session.leave()
	s.cancelFor(id, "its client went away")
	return nil
}

// states sends the job's states until its result has been sent. It reports whether that came about.
func (s *Session) states(ctx context.Context, infos <-chan queue.Info) (finished bool) {
	for {
		var i queue.Info
		var more bool
		select {
		case i, more = <-infos:
		case <-s.gone:
			return false
		}
		if !more {
			_ = s.sendJSON(ctx, FrameError, problem(ErrDraining))
			return false
		}
		kind := FrameState
		if i.State == runner.Finished {
			kind = FrameResult
		}
		if s.sendJSON(ctx, kind, jobOf(i)) != nil {
			return kind == FrameResult
		}
		if kind == FrameResult {
			return true
		}
	}
}

func (s *Session) sendJSON(ctx context.Context, kind FrameType, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.send(ctx, Frame{Type: kind, Time: time.Now(), Data: text})
}

// write sends what is to be sent, until last is closed and nothing is left, or the client is gone.
func (s *Session) write(w io.Writer) {
	for {
		select {
		case b := <-s.out:
			if !s.put(w, b) {
				return
			}
		case <-s.gone:
			return
		case <-s.last:
			for {
				select {
				case b := <-s.out:
					if !s.put(w, b) {
						return
					}
				default:
					return
				}
			}
		}
	}
}

func (s *Session) put(w io.Writer, b []byte) bool {
	if _, err := w.Write(b); err != nil {
		s.leave()
		return false
	}
	return true
}

// read takes what the client sends, until it goes away or does what it must not.
func (s *Session) read(r io.Reader) error {
	frames := NewFrameReader(r)
	for {
		f, err := frames.Next()
		if err != nil {
			return err
		}
		switch {
		case f.Type == FrameStdin:
			if err := s.stdin.put(f.Data); err != nil {
				return err
			}
		case f.Type == FrameStdinEOF:
			s.stdin.end(io.EOF)
		case f.Type == FrameSignal && len(f.Data) == 1 && f.Data[0] >= 1 && f.Data[0] <= 64:
			select {
			case s.signals <- syscall.Signal(f.Data[0]):
			default: // 16 that nobody has taken
			}
		case f.Type == FrameResize && len(f.Data) == 4:
			size := sandbox.WindowSize{Rows: binary.BigEndian.Uint16(f.Data), Cols: binary.BigEndian.Uint16(f.Data[2:])}
			select {
			case <-s.resize: // only the last one counts
			default:
			}
			s.resize <- size
		default:
			return fmt.Errorf("frame of type %#x and %d bytes: not known", uint8(f.Type), len(f.Data))
		}
	}
}

func uint32Bytes(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
