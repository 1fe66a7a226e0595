package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// rawCodec leaves messages as they came: what the proxy has no need to know it does not decode, so nothing is
// lost of clients and workers that are newer than this code.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

// Unmarshal copies: gRPC uses its buffer again.
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (rawCodec) Name() string { return "proto" }

// handle answers every call.
func (p *Proxy) handle(_ any, in grpc.ServerStream) (err error) {
	defer func() { // a job must not end the daemon
		if r := recover(); r != nil {
			p.cfg.Log.Error("a call of a job's build panicked", "panic", r, "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "runnerd panicked: please report this")
		}
	}()
	method, _ := grpc.MethodFromServerStream(in)
	rule, ok := rules[method]
	if !ok {
		return denied("call %s", method)
	}
	ctx, cancel := context.WithCancelCause(in.Context())
	defer cancel(nil)
	md, _ := metadata.FromIncomingContext(ctx)
	if rule.metadata != nil {
		if err := rule.metadata(p, ctx, md); err != nil {
			return err
		}
	}
	if rule.limit != nil {
		running := rule.limit(p)
		select {
		case running <- struct{}{}:
			defer func() { <-running }()
		default:
			return status.Errorf(codes.ResourceExhausted, "this job has %d builds or sessions running: wait for one to end", cap(running))
		}
	}
	var first []byte
	if !rule.streams {
		if err := p.receive(ctx, in, &first); err != nil {
			return err
		}
		if rule.request != nil {
			if first, err = rule.request(ctx, p, first); err != nil {
				return err
			}
		}
	}
	conn, err := p.connect(ctx)
	if err != nil {
		return status.Error(codes.FailedPrecondition, err.Error()) // not Unavailable: clients would try again and hide why
	}
	if p.cfg.Working != nil && rule.limit != nil && !rule.streams { // a build
		defer p.cfg.Working()()
	}
	ctx = metadata.NewOutgoingContext(ctx, md.Copy())
	if rule.call != nil {
		answer, err := rule.call(p, ctx, conn, method, first)
		if err != nil {
			return err
		}
		return in.SendMsg(&answer)
	}
	out, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if rule.streams {
		go func() {
			if err := p.upstream(in, out); err != nil {
				cancel(err)
			}
		}()
	} else if err := errors.Join(out.SendMsg(&first), out.CloseSend()); err != nil && !errors.Is(err, io.EOF) {
		return err // of io.EOF, the reason is what is received
	}
	return p.downstream(rule, in, out)
}

// receive reads the one message of a call.
func (p *Proxy) receive(ctx context.Context, in grpc.ServerStream, message *[]byte) error {
	select {
	case p.receiving <- struct{}{}:
		defer func() { <-p.receiving }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return in.RecvMsg(message)
}

// upstream passes on what the client says, to its end.
func (p *Proxy) upstream(in grpc.ServerStream, out grpc.ClientStream) error {
	for {
		var message []byte
		if err := in.RecvMsg(&message); errors.Is(err, io.EOF) {
			return out.CloseSend()
		} else if err != nil {
			return err
		}
		p.uploaded.Add(int64(len(message)))
		if err := out.SendMsg(&message); err != nil {
			if errors.Is(err, io.EOF) {
				return nil // downstream tells why
			}
			return err
		}
	}
}

// downstream passes on what the worker says, as far as the rule lets it.
func (p *Proxy) downstream(rule rule, in grpc.ServerStream, out grpc.ClientStream) error {
	header, err := out.Header()
	if err != nil {
		return err
	}
	if err := in.SendHeader(header); err != nil {
		return err
	}
	for {
		var message []byte
		if err := out.RecvMsg(&message); err != nil {
			in.SetTrailer(out.Trailer())
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if rule.response != nil {
			pass, err := rule.response(p, message)
			if err != nil {
				return fmt.Errorf("read the builder's answer: %w", err)
			}
			if !pass {
				continue
			}
		}
		if err := in.SendMsg(&message); err != nil {
			return err
		}
	}
}
