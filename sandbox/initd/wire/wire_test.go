package wire

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	request := Request{
		Session: 1<<64 - 1, ID: 7, Op: Open, Process: 9, Number: 0o2000000, Mode: 0o644,
		Network: "unix", Address: "/run/docker.sock\xff",
	}
	if got, err := DecodeRequest(request.Encode()); err != nil || got != request {
		t.Errorf("got %+v, %v", got, err)
	}
	reply := Reply{Session: 3, ID: 1 << 63, Kind: Exited, Errno: 2, Code: 127, Status: 0x7f00, Error: "exec: “x”"}
	if got, err := DecodeReply(reply.Encode()); err != nil || got != reply {
		t.Errorf("got %+v, %v", got, err)
	}
	spec := Spec{
		Args: []string{"sh", "-c", ""}, Env: []string{"A=" + strings.Repeat("x", 1<<20)}, Dir: "/w", User: "1:2",
		Terminal: true, Rows: 24, Cols: 65535,
	}
	if got, err := DecodeSpec(spec.Encode()); err != nil || !reflect.DeepEqual(got, spec) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestMalformed(t *testing.T) {
	whole := Reply{Session: 1, ID: 2, Kind: Answer, Error: "text"}.Encode()
	for i := range whole {
		if _, err := DecodeReply(whole[:i]); err == nil {
			t.Errorf("%d of %d bytes were read", i, len(whole))
		}
	}
	if _, err := DecodeReply(append(whole, 0)); err == nil {
		t.Error("what follows a reply was ignored")
	}
	if _, err := DecodeSpec((Spec{}).Encode()); err == nil {
		t.Error("a process without arguments was read")
	}
}

// A sandbox may send anything: decoding takes no more memory than a small multiple of it, and what it
// accepts it would also have written, but for longer spellings of numbers.
func FuzzDecodeReply(f *testing.F) {
	f.Add(Reply{Session: 1, ID: 2, Kind: Answer, Error: "text"}.Encode())
	f.Add(bytes.Repeat([]byte{0xff}, 32))
	f.Fuzz(func(t *testing.T, packet []byte) {
		r, err := DecodeReply(packet)
		if err != nil || len(r.Error) > MaxText {
			return
		}
		if again, err := DecodeReply(r.Encode()); err != nil || again != r {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add(Request{Session: 1, ID: 2, Op: Dial, Network: "unix", Address: "/x"}.Encode())
	f.Fuzz(func(t *testing.T, packet []byte) {
		if r, err := DecodeRequest(packet); err == nil {
			if again, err := DecodeRequest(r.Encode()); err != nil || again != r {
				t.Errorf("%+v became %+v, %v", r, again, err)
			}
		}
	})
}

func FuzzDecodeSpec(f *testing.F) {
	f.Add(Spec{Args: []string{"true"}, Env: []string{"A=b"}, Dir: "/", Terminal: true}.Encode())
	f.Add([]byte("\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := DecodeSpec(data); err == nil {
			if again, err := DecodeSpec(s.Encode()); err != nil || !reflect.DeepEqual(normal(again), normal(s)) {
				t.Errorf("%+v became %+v, %v", s, again, err)
			}
		}
	})
}

func normal(s Spec) Spec {
	if len(s.Env) == 0 {
		s.Env = nil
	}
	return s
}
