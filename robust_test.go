package usher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestShutdownBeforeServe(t *testing.T) {
	opts := quickly()
	opts.Shutdown.Delay = 20 * time.Second // for those who might still come
	s := Wrap(&http.Server{}, opts)
	began := time.Now()
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d >= opts.Shutdown.Delay {
		t.Errorf("a server that never served took %v to stop", d)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); err != http.ErrServerClosed {
		t.Errorf("Serve: %v, want http.ErrServerClosed", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener was left open: %v", err)
	}
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("ListenAndServe: %v, want http.ErrServerClosed", err)
	}
}

func TestShutdownOftenAndAtOnce(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		g := newGated()
		ts := startServer(t, m, quickly(), g.ServeHTTP)
		client := ts.client()
		got := make(chan error, 1)
		go func() {
			_, err := ts.get(client, "/")
			got <- err
		}()
		<-g.begun
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if err := ts.Shutdown(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}
		// One whose time is over returns, and does not end the stop.
		over, cancel := context.WithCancel(context.Background())
		cancel()
		ts.awaitPhase(PhaseDrain)
		var se *ShutdownError
		if err := ts.Shutdown(over); !errors.As(err, &se) || !errors.Is(err, context.Canceled) || se.Phase < PhaseDrain {
			t.Errorf("Shutdown with a context that is over: %v", err)
		}
		close(g.release)
		if err := <-got; err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := ts.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestShutdownInHandler(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		var ts *testServer
		ts = startServer(t, m, quickly(), func(w http.ResponseWriter, r *http.Request) {
			if err := ts.Shutdown(r.Context()); err != nil {
				t.Error(err)
			}
			ok(w, r)
		})
		if _, err := ts.get(ts.client(), "/"); err != nil {
			t.Error(err)
		}
		if err := <-ts.served; err != http.ErrServerClosed {
			t.Errorf("Serve: %v, want http.ErrServerClosed", err)
		}
		ts.balanced()
	})
}

func TestSeveralListeners(t *testing.T) {
	ts := startServer(t, h1, quickly(), ok)
	for _, network := range []string{"tcp", "unix"} {
		address := "127.0.0.1:0"
		if network == "unix" {
			address = t.TempDir() + "/s"
		}
		l, err := Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		other := &testServer{Server: ts.Server, t: t, mode: h1, net: network, addr: l.Addr().String(), served: make(chan error, 1)}
		other.serve(l)
		if _, err := other.get(other.client(), "/"); err != nil {
			t.Error(err)
		}
		defer func() {
			if err := <-other.served; err != http.ErrServerClosed {
				t.Errorf("Serve: %v, want http.ErrServerClosed", err)
			}
		}()
	}
	// A listener that fails ends its own Serve alone.
	broken := errors.New("broken")
	if err := ts.Serve(failingListener{err: broken}); err != broken {
		t.Errorf("Serve with a broken listener: %v", err)
	}
	if _, err := ts.get(ts.client(), "/"); err != nil {
		t.Error(err)
	}
	if err := ts.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// failingListener fails in Accept.
type failingListener struct {
	noListener
	err error
}

func (l failingListener) Accept() (net.Conn, error) { return nil, l.err }

// TestBypass: the user stops the http.Server itself.
func TestBypass(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		for _, how := range []string{"Shutdown", "Close"} {
			t.Run(how, func(t *testing.T) {
				var rec recorder
				opts := quickly()
				opts.Logger = rec.logger()
				hooked := false
				ts := startServer(t, m, opts, ok)
				ts.OnShutdown("hook", func(context.Context) error { hooked = true; return nil })
				if _, err := ts.get(ts.client(), "/"); err != nil {
					t.Fatal(err)
				}
				if how == "Close" {
					ts.http.Close()
				} else if err := ts.http.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				if err := <-ts.served; !errors.Is(err, http.ErrServerClosed) {
					t.Errorf("Serve: %v, want http.ErrServerClosed", err)
				}
				if !hooked {
					t.Error("the hook did not run")
				}
				if !rec.contains("called directly") {
					t.Error("the log does not say so")
				}
				if r := ts.balanced(); r.Guarantee != GuaranteeNone {
					t.Errorf("report %+v", r)
				}
			})
		}
	})
}

func TestHooks(t *testing.T) {
	opts := quickly()
	opts.Shutdown.GracePeriod = time.Second
	var rec recorder
	opts.Logger = rec.logger()
	ts := startServer(t, h1, opts, ok)
	var order []string
	failure := errors.New("disk full")
	release := make(chan struct{})
	ts.OnShutdown("first", func(context.Context) error { order = append(order, "first"); return nil })
	ts.OnShutdown("fails", func(context.Context) error { order = append(order, "fails"); return failure })
	ts.OnShutdown("panics", func(context.Context) error { order = append(order, "panics"); panic("ouch") })
	ts.OnShutdown("hangs", func(context.Context) error { <-release; return nil })
	ts.OnShutdown("heeds", func(ctx context.Context) error { order = append(order, "heeds"); return ctx.Err() })
	err := ts.Shutdown(context.Background())
	close(release)
	if got := strings.Join(order, " "); got != "first fails panics heeds" {
		t.Errorf("hooks ran in the order %q", got)
	}
	var se *ShutdownError
	if !errors.As(err, &se) || se.Phase != PhaseFinish || !errors.Is(err, failure) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	for _, want := range []string{`hook "fails": disk full`, `hook "panics": panic: ouch`, `hook "hangs": still running`} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if strings.Contains(fmt.Sprint(err), `"heeds"`) {
		t.Errorf("a hook that heeded its context failed: %v", err)
	}
}

// TestHooksDoNotOverlap: not even when nobody waits for the stop any more.
func TestHooksDoNotOverlap(t *testing.T) {
	ts := startServer(t, h1, quickly(), ok)
	flushing, release := make(chan struct{}), make(chan struct{})
	flushed := false
	ts.OnShutdown("flush", func(ctx context.Context) error {
		close(flushing)
		<-release
		flushed = true
		return ctx.Err()
	})
	ts.OnShutdown("close database", func(ctx context.Context) error {
		if !flushed {
			t.Error("the database was closed before the flush had ended")
		}
		return ctx.Err()
	})
	ts.awaitPhase(PhaseServing)
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- ts.Shutdown(ctx) }()
	<-flushing
	cancel()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v", err)
	}
	close(release)
	if err := <-ts.served; err != http.ErrServerClosed {
		t.Errorf("Serve: %v, want http.ErrServerClosed", err)
	}
}

// TestCloseInHook: Close ends the hooks, also when one of them calls it.
func TestCloseInHook(t *testing.T) {
	ts := startServer(t, h1, quickly(), ok)
	ts.OnShutdown("closes", func(context.Context) error { return ts.Close() })
	ts.OnShutdown("later", func(context.Context) error { t.Error("a hook ran after Close"); return nil })
	if err := ts.Shutdown(context.Background()); err == nil {
		t.Error("Shutdown returned nil after Close")
	}
}

// nosyHandler is a log handler that asks the server how it is.
type nosyHandler struct {
	slog.Handler
	s **Server
}

func (h nosyHandler) Handle(context.Context, slog.Record) error {
	(*h.s).Stats()
	return nil
}

func TestLoggerMayAskTheServer(t *testing.T) {
	var s *Server
	opts := quickly()
	opts.Logger = slog.New(nosyHandler{slog.NewTextHandler(io.Discard, nil), &s})
	s = Wrap(&http.Server{}, opts)
	s.endLameDuck("test")
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestSameListenerTwice(t *testing.T) {
	inner, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opts := quickly()
	l, err := NewListener(inner, opts.Listener)
	if err != nil {
		t.Fatal(err)
	}
	ts := &testServer{t: t, mode: h1, http: newHTTPServer(h1, http.HandlerFunc(ok)), net: "tcp", addr: l.Addr().String(), served: make(chan error, 2)}
	ts.Server = Wrap(ts.http, opts)
	ts.serve(l)
	ts.serve(l)
	client := ts.client()
	if _, err := ts.get(client, "/"); err != nil {
		t.Error(err)
	}
	if st := ts.Stats(); st.Accepted != 1 || st.Connections.Open != 1 {
		t.Errorf("stats %+v after one connection", st)
	}
	client.CloseIdleConnections()
	ts.clean(ts.shutdown())
}

// TestRegisterOnShutdown: the idiom by which handlers of long responses were
// told before there was Draining.
func TestRegisterOnShutdown(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		begun, over := make(chan struct{}), make(chan struct{})
		ts := startServer(t, m, quickly(), func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			<-over
			ok(w, r)
		})
		ts.RegisterOnShutdown(func() { close(over) })
		got := make(chan error, 1)
		client := ts.client()
		go func() {
			_, err := ts.get(client, "/")
			got <- err
		}()
		<-begun
		ts.clean(ts.shutdown())
		if err := <-got; err != nil {
			t.Error(err)
		}
	})
}

// TestBypassLeavesHijacked: net/http does not wait for them, and who calls its
// Close directly should get that.
func TestBypassLeavesHijacked(t *testing.T) {
	hijacked := make(chan net.Conn, 1)
	ts := startServer(t, h1, quickly(), func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
		}
		hijacked <- c
	})
	c := ts.dial()
	c.send(request)
	server := <-hijacked
	defer server.Close()
	ts.http.Close()
	if err := <-ts.served; err != http.ErrServerClosed {
		t.Errorf("Serve: %v", err)
	}
	if _, err := server.Write([]byte("x")); err != nil {
		t.Errorf("the hijacked connection was closed: %v", err)
	}
}

// TestShutdownReturnsByDeadline: whatever hangs.
func TestShutdownReturnsByDeadline(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		release := make(chan struct{})
		defer close(release)
		begun := make(chan struct{})
		ts := startServer(t, m, quickly(), func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			<-release
		})
		ts.OnShutdown("hangs", func(context.Context) error { <-release; return nil })
		client := ts.client()
		go ts.get(client, "/")
		<-begun
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		err := ts.Shutdown(ctx)
		var se *ShutdownError
		if !errors.As(err, &se) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		client.CloseIdleConnections()
		if err := <-ts.served; err != http.ErrServerClosed {
			t.Errorf("Serve: %v, want http.ErrServerClosed", err)
		}
	})
}

// stubbornListener blocks in Accept and in Close, whatever happens.
type stubbornListener struct{ release chan struct{} }

func (l stubbornListener) Accept() (net.Conn, error) { <-l.release; return nil, net.ErrClosed }
func (l stubbornListener) Close() error              { <-l.release; return nil }
func (l stubbornListener) Addr() net.Addr            { return &net.TCPAddr{} }

func TestStubbornListener(t *testing.T) {
	opts := quickly()
	opts.Shutdown.GracePeriod = 500 * time.Millisecond
	s := Wrap(&http.Server{}, opts)
	l := stubbornListener{make(chan struct{})}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	eventually(t, "Serve serves", func() bool { return s.Phase() == PhaseServing })
	if err := s.Shutdown(context.Background()); err == nil {
		t.Error("Shutdown returned nil although the listener never closed")
	}
	close(l.release)
	if err := <-served; err == nil {
		t.Error("Serve returned nil")
	}
}

func TestClose(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		for _, during := range []bool{false, true} {
			t.Run(fmt.Sprintf("during shutdown=%v", during), func(t *testing.T) {
				opts := quickly()
				opts.Shutdown.IdleGrace = 20 * time.Second
				g := newGated()
				ts := startServer(t, m, opts, g.ServeHTTP)
				defer close(g.release)
				client := ts.client()
				got := make(chan error, 1)
				go func() {
					_, err := ts.get(client, "/")
					got <- err
				}()
				<-g.begun
				var stopped <-chan error
				if during {
					stopped = ts.shutdown()
					ts.awaitPhase(PhaseDrain)
				}
				if err := ts.Close(); err != nil {
					t.Error(err)
				}
				if err := <-got; err == nil {
					t.Error("the request was answered")
				}
				if err := <-ts.served; !errors.Is(err, http.ErrServerClosed) {
					t.Errorf("Serve: %v, want http.ErrServerClosed", err)
				}
				if during {
					if err := <-stopped; !errors.Is(err, http.ErrServerClosed) {
						t.Errorf("Shutdown: %v, want http.ErrServerClosed", err)
					}
				}
				if err := ts.Close(); err != nil {
					t.Errorf("second Close: %v", err)
				}
			})
		}
	})
}

func TestOptionsOutOfRange(t *testing.T) {
	for _, tt := range []struct {
		opts Options
		want string
	}{
		{Options{Listener: ListenerOptions{MaxConns: -1}}, "Options.Listener.MaxConns is -1"},
		{Options{Listener: ListenerOptions{HandshakeGrace: -time.Second}}, "Options.Listener.HandshakeGrace is -1s"},
		{Options{Shutdown: ShutdownOptions{Delay: -1}}, "Options.Shutdown.Delay is -1ns"},
		{Options{Shutdown: ShutdownOptions{IdleGrace: -1}}, "Options.Shutdown.IdleGrace is -1ns"},
		{Options{Shutdown: ShutdownOptions{GracePeriod: -1}}, "Options.Shutdown.GracePeriod is -1ns"},
		{Options{Shutdown: ShutdownOptions{IdleGrace: time.Minute}}, "Options.Shutdown.IdleGrace is 1m0s, must be less than GracePeriod, which is 25s"},
		{Options{Shutdown: ShutdownOptions{Delay: 25 * time.Second}}, "Options.Shutdown.Delay (25s)"},
	} {
		s := Wrap(&http.Server{Addr: "127.0.0.1:0"}, tt.opts)
		for name, err := range map[string]error{
			"ListenAndServe": s.ListenAndServe(),
			"Run":            s.Run(t.Context()),
			"Serve":          s.Serve(noListener{}),
			"Shutdown":       s.Shutdown(t.Context()),
		} {
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s with %+v: %v, want %q", name, tt.opts, err, tt.want)
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if err := Wrap(nil, Options{}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "nil") {
		t.Errorf("Run without an http.Server: %v", err)
	}
	if _, err := NewListener(nil, ListenerOptions{}); err == nil {
		t.Error("NewListener took nil")
	}
	if _, err := NewListener(noListener{}, ListenerOptions{MaxConns: -1}); err == nil || !strings.Contains(err.Error(), "ListenerOptions.MaxConns is -1") {
		t.Errorf("NewListener: %v", err)
	}
	s := Wrap(&http.Server{}, Options{})
	for name, register := range map[string]func(){
		"OnShutdown":         func() { s.OnShutdown("none", nil) },
		"RegisterOnShutdown": func() { s.RegisterOnShutdown(nil) },
	} {
		func() {
			defer func() {
				if v := recover(); !strings.Contains(fmt.Sprint(v), name) || !strings.Contains(fmt.Sprint(v), "nil") {
					t.Errorf("%s(nil): recovered %v", name, v)
				}
			}()
			register()
		}()
	}
	if err := s.Serve(nil); err == nil {
		t.Error("Serve took nil")
	}
}

func TestReady(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		opts := quickly()
		opts.Shutdown.Delay = 20 * time.Second
		var ts *testServer
		ts = startServer(t, m, opts, func(w http.ResponseWriter, r *http.Request) { ts.Ready().ServeHTTP(w, r) })
		client := ts.client()
		if body, err := ts.get(client, "/"); body != "ready\n" || err != nil {
			t.Errorf("serving: %q, %v", body, err)
		}
		stopped := ts.shutdown()
		ts.awaitPhase(PhaseLameDuck)
		if body, err := ts.get(client, "/"); body != "lame duck\n" || err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("lame duck: %q, %v", body, err)
		}
		client.CloseIdleConnections()
		ts.endLameDuck("test")
		ts.clean(stopped)
	})
}

// TestRun: the context ends the run.
func TestRun(t *testing.T) {
	run(t, h1Modes, func(t *testing.T, m mode) {
		for _, given := range []bool{false, true} {
			srv := newHTTPServer(m, http.HandlerFunc(ok))
			srv.Addr = "127.0.0.1:0"
			s := Wrap(srv, quickly())
			ctx, cancel := context.WithCancelCause(t.Context())
			result := make(chan error, 1)
			if given {
				l, err := Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				go func() { result <- s.Run(ctx, l) }()
			} else {
				go func() { result <- s.Run(ctx) }()
			}
			eventually(t, "Run serves", func() bool { return s.Phase() == PhaseServing })
			cancel(errors.New("enough"))
			if err := <-result; err != nil {
				t.Error(err)
			}
			if r := s.Stats().Report; r == nil || r.Reason != "enough" {
				t.Errorf("report %+v", r)
			}
		}
	})
	broken := errors.New("broken")
	l, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := Wrap(newHTTPServer(h1, nil), quickly())
	if err := s.Run(t.Context(), l, failingListener{err: broken}); !errors.Is(err, broken) {
		t.Errorf("Run with a broken listener: %v", err)
	}
	if err := Wrap(&http.Server{Addr: "nowhere.invalid:0"}, quickly()).Run(t.Context()); err == nil {
		t.Error("Run listened on an address that does not exist")
	}
}
