package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/seed-235859eb/usher"
)

type text = wrapperspb.StringValue

var errStopping = status.Error(codes.Unavailable, "the server stops")

// every is how often a stream says something.
const every = 5 * time.Millisecond

// grpcEcho is what a generated service would be.
var grpcEcho = grpc.ServiceDesc{
	ServiceName: "echo.Echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(text)
		return in, decode(in)
	}}},
	Streams: []grpc.StreamDesc{
		{StreamName: "Server", ServerStreams: true, Handler: grpcServerStream},
		{StreamName: "Client", ClientStreams: true, Handler: grpcClientStream},
		{StreamName: "Both", ClientStreams: true, ServerStreams: true, Handler: grpcBoth},
	},
}

// grpcServerStream sends until the server stops.
func grpcServerStream(_ any, s grpc.ServerStream) error {
	in := new(text)
	if err := s.RecvMsg(in); err != nil {
		return err
	}
	for {
		if err := s.SendMsg(in); err != nil {
			return err
		}
		select {
		case <-time.After(every):
		case <-usher.Draining(s.Context()):
			return errStopping
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

// grpcClientStream receives until its client is done, also while the server
// stops.
func grpcClientStream(_ any, s grpc.ServerStream) error {
	n := 0
	for {
		switch err := s.RecvMsg(new(text)); err {
		case nil:
			n++
		case io.EOF:
			return s.SendMsg(wrapperspb.String(fmt.Sprint(n)))
		default:
			return err
		}
	}
}

// grpcBoth echoes. It would wait for its client in Recv when the server stops,
// so that happens on a goroutine of its own.
func grpcBoth(_ any, s grpc.ServerStream) error {
	result := make(chan error, 1)
	go func() {
		for {
			m := new(text)
			err := s.RecvMsg(m)
			if err == nil {
				err = s.SendMsg(m)
			}
			if err != nil {
				result <- err
				return
			}
		}
	}()
	select {
	case err := <-result:
		if err == io.EOF {
			return nil
		}
		return err
	case <-usher.Draining(s.Context()):
		return errStopping // ends the goroutine, too
	}
}

// connectUnary and connectStream are handlers of connect-go.
func connectUnary(_ context.Context, r *connect.Request[text]) (*connect.Response[text], error) {
	return connect.NewResponse(r.Msg), nil
}

func connectStream(ctx context.Context, r *connect.Request[text], s *connect.ServerStream[text]) error {
	for {
		if err := s.Send(r.Msg); err != nil {
			return err
		}
		select {
		case <-time.After(every):
		case <-usher.Draining(ctx):
			return connect.NewError(connect.CodeUnavailable, errors.New("the server stops"))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// events sends server-sent events. An EventSource connects again by itself.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for {
		fmt.Fprint(w, "data: tick\n\n")
		http.NewResponseController(w).Flush()
		select {
		case <-time.After(every):
		case <-usher.Draining(r.Context()):
			return
		case <-r.Context().Done():
			return
		}
	}
}

// newServer returns a server of all of them, for HTTP/2 without TLS.
func newServer() *http.Server {
	g := grpc.NewServer()
	g.RegisterService(&grpcEcho, nil)
	mux := http.NewServeMux()
	mux.Handle("/echo.Echo/", g)
	mux.Handle("/connect/unary", connect.NewUnaryHandler("/connect/unary", connectUnary))
	mux.Handle("/connect/stream", connect.NewServerStreamHandler("/connect/stream", connectStream))
	mux.HandleFunc("/events", events)
	srv := &http.Server{Handler: mux, Protocols: new(http.Protocols)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	return srv
}
