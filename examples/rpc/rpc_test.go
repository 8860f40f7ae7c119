package rpc

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/seed-235859eb/usher"
)

var stops = flag.Int("stops", 3, "how many stops the tests of unary calls make")

// A running server.
type running struct {
	*usher.Server
	addr string
}

func start(t *testing.T) *running {
	t.Helper()
	l, err := usher.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := usher.Wrap(newServer(), usher.Options{Logger: slog.New(slog.DiscardHandler)})
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return &running{s, l.Addr().String()}
}

// stop stops the server and fails the test if it does not end in order.
func (r *running) stop(t *testing.T) {
	t.Helper()
	if err := r.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// grpcClient returns a client that goes to the first server that it can reach.
func grpcClient(t *testing.T, servers ...*running) *grpc.ClientConn {
	t.Helper()
	r := manual.NewBuilderWithScheme("test")
	var state resolver.State
	for _, s := range servers {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: s.addr})
	}
	r.InitialState(state)
	c, err := grpc.NewClient("test:///echo", grpc.WithResolvers(r), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// httpClient is the same for HTTP.
func httpClient(t *testing.T, servers ...*running) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
		for _, s := range servers {
			if c, err = new(net.Dialer).DialContext(ctx, "tcp", s.addr); err == nil {
				return c, nil
			}
		}
		return nil, err
	}}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// underLoad has many make calls, one after the other, while the first of two
// servers stops. Each call must succeed.
func underLoad(t *testing.T, client func(t *testing.T, servers ...*running) (call func() error)) {
	const callers = 20
	for range *stops {
		first, second := start(t), start(t)
		call := client(t, first, second)
		var calls atomic.Int64
		busy, enough := make(chan struct{}), make(chan struct{})
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for {
					select {
					case <-enough:
						return
					default:
					}
					if err := call(); err != nil {
						t.Errorf("after %d calls: %v", calls.Load(), err)
						return
					}
					if calls.Add(1) == 10*callers {
						close(busy)
					}
				}
			})
		}
		<-busy
		first.stop(t)
		n := calls.Load()
		for calls.Load() < n+callers && !t.Failed() {
			time.Sleep(time.Millisecond) // until the second server has answered, too
		}
		close(enough)
		wg.Wait()
		second.stop(t)
	}
}

func TestGRPCUnary(t *testing.T) {
	underLoad(t, func(t *testing.T, servers ...*running) func() error {
		c := grpcClient(t, servers...)
		return func() error { return c.Invoke(t.Context(), "/echo.Echo/Unary", wrapperspb.String("hello"), new(text)) }
	})
}

func TestConnectUnary(t *testing.T) {
	underLoad(t, func(t *testing.T, servers ...*running) func() error {
		c := connect.NewClient[text, text](httpClient(t, servers...), "http://echo.test/connect/unary")
		return func() error {
			_, err := c.CallUnary(t.Context(), connect.NewRequest(wrapperspb.String("hello")))
			return err
		}
	})
}

// TestGRPCStreams: those that the server ends do so with Unavailable, and one
// that the client ends is received whole.
func TestGRPCStreams(t *testing.T) {
	s := start(t)
	c := grpcClient(t, s)
	open := func(name string, desc grpc.StreamDesc) grpc.ClientStream {
		t.Helper()
		stream, err := c.NewStream(t.Context(), &desc, "/echo.Echo/"+name)
		if err == nil {
			err = stream.SendMsg(wrapperspb.String("hello"))
		}
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	server := open("Server", grpc.StreamDesc{ServerStreams: true})
	server.CloseSend()
	client := open("Client", grpc.StreamDesc{ClientStreams: true})
	both := open("Both", grpc.StreamDesc{ClientStreams: true, ServerStreams: true})
	for name, stream := range map[string]grpc.ClientStream{"server": server, "both": both} {
		if err := stream.RecvMsg(new(text)); err != nil {
			t.Fatal(name, err)
		}
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.stop(t)
	}()
	for name, stream := range map[string]grpc.ClientStream{"server": server, "both": both} {
		var err error
		for err == nil {
			err = stream.RecvMsg(new(text))
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	got := new(text)
	if err := errors.Join(client.SendMsg(wrapperspb.String("more")), client.CloseSend(), client.RecvMsg(got)); err != nil || got.Value != "2" {
		t.Errorf("client: %q, %v", got.Value, err)
	}
	c.Close()
	<-stopped
}

func TestConnectStream(t *testing.T) {
	s := start(t)
	c := connect.NewClient[text, text](httpClient(t, s), "http://echo.test/connect/stream")
	stream, err := c.CallServerStream(t.Context(), connect.NewRequest(wrapperspb.String("hello")))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	go s.Shutdown(context.Background())
	for stream.Receive() {
	}
	if err := stream.Err(); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("got %v", err)
	}
}

func TestEvents(t *testing.T) {
	s := start(t)
	resp, err := httpClient(t, s).Get("http://echo.test/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	if line, err := r.ReadString('\n'); err != nil || line != "data: tick\n" {
		t.Fatal(line, err)
	}
	go s.Shutdown(context.Background())
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Errorf("the stream does not end in order: %v", err)
	}
}
