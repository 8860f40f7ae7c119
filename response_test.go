package usher

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// drainingServer returns a server whose drain goes on until the test ends, and
// a dialled connection that it still serves.
func drainingServer(t *testing.T, m mode, h http.HandlerFunc) (*testServer, *rawConn) {
	opts := quickly()
	opts.Shutdown.IdleGrace = 20 * time.Second
	ts := startServer(t, m, opts, h)
	c := ts.dial()
	eventually(t, "the connection is accepted", func() bool { return ts.Stats().Accepted == 1 })
	stopped := ts.shutdown()
	t.Cleanup(func() {
		c.Close()
		ts.clean(stopped)
	})
	ts.awaitPhase(PhaseDrain)
	return ts, c
}

func TestLastResponseHeader(t *testing.T) {
	for _, tt := range []struct {
		name    string
		request string
		handler http.HandlerFunc
		status  int
		want    []string // values of Connection
		closes  bool
	}{
		{"written at once", request, ok, 200, []string{"close"}, true},
		{"nothing written", request, func(w http.ResponseWriter, r *http.Request) {}, 200, []string{"close"}, true},
		{"status only", request, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, 204, []string{"close"}, true},
		{"not modified", request, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(304) }, 304, []string{"close"}, true},
		{"WriteString", request, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }, 200, []string{"close"}, true},
		{"flushed", request, func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush() }, 200, []string{"close"}, true},
		{"flushed by controller", request, func(w http.ResponseWriter, r *http.Request) {
			if err := http.NewResponseController(w).Flush(); err != nil {
				panic(err)
			}
		}, 200, []string{"close"}, true},
		{"ReadFrom", request, func(w http.ResponseWriter, r *http.Request) {
			w.(io.ReaderFrom).ReadFrom(strings.NewReader("ok"))
		}, 200, []string{"close"}, true},
		{"HEAD", "HEAD / HTTP/1.1\r\nHost: usher.test\r\n\r\n", ok, 200, []string{"close"}, true},
		{"early hints first", request, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</a>")
			w.WriteHeader(103)
			ok(w, r)
		}, 200, []string{"close"}, true},
		{"user says close", request, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
		}, 200, []string{"close"}, true},
		{"user says keep-alive", request, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "keep-alive")
			w.Header().Set("Keep-Alive", "timeout=5")
		}, 200, []string{"close"}, true},
		{"user has an option", request, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Hop", "1")
			w.Header().Set("Connection", "X-Hop, keep-alive")
		}, 200, []string{"close", "X-Hop"}, true},
		{"switching protocols", request, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "echo")
			w.WriteHeader(101)
		}, 101, []string{"Upgrade"}, false},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", ok, 200, nil, true},
		{"HTTP/1.0 keep-alive", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", ok, 200, []string{"close"}, true},
		{"behind TimeoutHandler", request, http.TimeoutHandler(http.HandlerFunc(ok), time.Minute, "").ServeHTTP, 200, []string{"close"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, c := drainingServer(t, h1, tt.handler)
			c.send(tt.request)
			resp, err := readFinal(c.r)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status {
				t.Errorf("status %d, want %d", resp.StatusCode, tt.status)
			}
			if got := resp.Header["Connection"]; !slices.Equal(got, tt.want) {
				t.Errorf("Connection: %q, want %q", got, tt.want)
			}
			if resp.Header.Get("Keep-Alive") != "" {
				t.Error("Keep-Alive beside Connection: close")
			}
			if tt.closes {
				if _, err := io.Copy(io.Discard, c.r); err != nil {
					t.Errorf("after the response: %v", err)
				}
			}
		})
	}
}

// readFinal reads a response's header as it was sent: http.ReadResponse takes
// Connection away.
func readFinal(r *bufio.Reader) (*http.Response, error) {
	for {
		status, err := r.ReadString('\n')
		if err != nil {
			return nil, err
		}
		resp := &http.Response{Header: make(http.Header)}
		if _, err := fmt.Sscanf(status, "HTTP/1.%d %d", &resp.ProtoMinor, &resp.StatusCode); err != nil {
			return nil, fmt.Errorf("status line %q: %w", status, err)
		}
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return nil, err
			}
			name, value, found := strings.Cut(strings.TrimSpace(line), ": ")
			if !found {
				break
			}
			resp.Header.Add(name, value)
		}
		if resp.StatusCode/100 == 1 && resp.StatusCode != 101 {
			if resp.Header.Get("Connection") != "" {
				return nil, fmt.Errorf("an informational response says Connection: %s", resp.Header.Get("Connection"))
			}
			continue
		}
		return resp, nil
	}
}

// TestLameDuckResponses: what begins in the lame duck is told of the drain
// when its header is written after the drain began, and not before.
func TestLameDuckResponses(t *testing.T) {
	run(t, h1Modes, func(t *testing.T, m mode) {
		opts := quickly()
		opts.Shutdown.Delay = 20 * time.Second
		opts.Shutdown.IdleGrace = 20 * time.Second
		begun, release := make(chan struct{}, 1), make(chan struct{})
		ts := startServer(t, m, opts, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "POST" {
				begun <- struct{}{}
				<-release
			}
			ok(w, r)
		})
		early, late := ts.dial(), ts.dial()
		stopped := ts.shutdown()
		ts.awaitPhase(PhaseLameDuck)

		early.send(request)
		if early.answered().Close {
			t.Error("a response in the lame duck says close")
		}
		// Connects are still served.
		newcomer := ts.dial()
		newcomer.send(request)
		if newcomer.answered().Close {
			t.Error("a response to a newcomer in the lame duck says close")
		}
		newcomer.Close()

		late.send("POST / HTTP/1.1\r\nHost: usher.test\r\nContent-Length: 0\r\n\r\n")
		<-begun
		ts.endLameDuck("test")
		ts.awaitPhase(PhaseDrain)
		close(release)
		if !late.answered().Close {
			t.Error("a request that began in the lame duck is not told of the drain")
		}
		late.ended()
		early.Close()
		ts.clean(stopped)
	})
}

// TestHandlerSeesOriginalWriter: while serving, nothing stands between the
// handler and net/http.
func TestHandlerSeesOriginalWriter(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		types := make(chan string, 1)
		h := func(w http.ResponseWriter, r *http.Request) {
			types <- fmt.Sprintf("%T", w)
			ok(w, r)
		}
		ts := startServer(t, m, quickly(), h)
		if _, err := ts.get(ts.client(), "/"); err != nil {
			t.Fatal(err)
		}
		want := writerOf(t, m)
		if got := <-types; got != want {
			t.Errorf("the handler got a %s, want %s", got, want)
		}
	})
}

// writerOf returns the type of the ResponseWriter that a bare http.Server gives
// its handler. Its name changed with Go 1.27.
func writerOf(t *testing.T, m mode) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	types := make(chan string, 1)
	srv := newHTTPServer(m, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { types <- fmt.Sprintf("%T", w) }))
	bare := &testServer{t: t, mode: m, http: srv, net: "tcp", addr: l.Addr().String()}
	if m.tls() {
		go srv.ServeTLS(l, "", "")
	} else {
		go srv.Serve(l)
	}
	defer srv.Close()
	if _, err := bare.get(bare.client(), "/"); err != nil {
		t.Fatal(err)
	}
	return <-types
}

// TestUserHooksAreChained: what the user has set is called, and first.
func TestUserHooksAreChained(t *testing.T) {
	type key struct{}
	states := make(chan http.ConnState, 100)
	value := make(chan any, 1)
	shutdown := make(chan struct{})
	ts := startServer(t, h1, quickly(), func(w http.ResponseWriter, r *http.Request) {
		value <- r.Context().Value(key{})
	}, func(ts *testServer) {
		ts.http.ConnState = func(c net.Conn, s http.ConnState) { states <- s }
		ts.http.BaseContext = func(net.Listener) context.Context { return context.WithValue(t.Context(), key{}, "base") }
		ts.http.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, key{}, fmt.Sprint(ctx.Value(key{}), " conn"))
		}
		ts.http.RegisterOnShutdown(func() { close(shutdown) })
	})
	c := ts.dial()
	c.send(request)
	c.answered()
	c.Close()
	if got := <-value; got != "base conn" {
		t.Errorf("context value %q", got)
	}
	for _, want := range []http.ConnState{http.StateNew, http.StateActive, http.StateIdle, http.StateClosed} {
		if got := <-states; got != want {
			t.Errorf("state %v, want %v", got, want)
		}
	}
	ts.clean(ts.shutdown())
	<-shutdown
}
