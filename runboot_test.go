package usher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestStopAtBoot: a stop that begins before Run has begun to serve, or while it
// does, is as clean as any other.
func TestStopAtBoot(t *testing.T) {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for _, tt := range []struct {
		name string
		run  func(*Server, ...net.Listener) error
	}{
		{"a context that is over", func(s *Server, ls ...net.Listener) error { return s.Run(over, ls...) }},
		{"Shutdown before", func(s *Server, ls ...net.Listener) error {
			if err := s.Shutdown(context.Background()); err != nil {
				return fmt.Errorf("Shutdown: %w", err)
			}
			return s.Run(context.Background(), ls...)
		}},
		{"Shutdown at the same time", func(s *Server, ls ...net.Listener) error {
			stopped := make(chan error, 1)
			go func() { stopped <- s.Shutdown(context.Background()) }()
			return errors.Join(s.Run(context.Background(), ls...), <-stopped)
		}},
	} {
		for _, m := range h1Modes {
			for _, listeners := range []int{0, 1, 3} {
				t.Run(fmt.Sprintf("%s/%s/%d", tt.name, m, listeners), func(t *testing.T) {
					t.Parallel()
					for range 30 {
						srv := newHTTPServer(m, http.HandlerFunc(ok))
						srv.Addr = "127.0.0.1:0"
						s := Wrap(srv, quickly())
						var ls []net.Listener
						for range listeners {
							l, err := Listen("tcp", "127.0.0.1:0")
							if err != nil {
								t.Fatal(err)
							}
							ls = append(ls, l)
						}
						if err := tt.run(s, ls...); err != nil {
							t.Fatalf("Run: %v", err)
						}
						for _, l := range ls {
							if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
								c.Close()
								t.Fatal("a listener was left open")
							}
						}
						if r := s.Stats().Report; r == nil || r.Cut != 0 {
							t.Fatalf("report %+v", r)
						}
					}
				})
			}
		}
	}
}

// TestSIGTERMAtBoot comes as soon as Run can hear it.
func TestSIGTERMAtBoot(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no SIGTERM")
	}
	// So that it does not end the test; nor later, when one is still on its way.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM)
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		srv := newHTTPServer(h1, http.HandlerFunc(ok))
		srv.Addr = "127.0.0.1:0"
		s := Wrap(srv, quickly())
		ran := make(chan error, 1)
		go func() { ran <- s.Run(context.Background()) }()
		for over := false; !over; {
			select {
			case err := <-ran:
				if over = true; err != nil {
					t.Errorf("Run: %v", err)
				}
			default:
				if err := self.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				runtime.Gosched()
			}
		}
	}
}

// TestErrServerClosed: what serves returns nothing else after a stop, however
// that went.
func TestErrServerClosed(t *testing.T) {
	for _, serve := range []string{"Serve", "ServeTLS", "ListenAndServe", "ListenAndServeTLS"} {
		for _, stop := range []string{"clean", "cut", "Close", "before", "hook fails"} {
			t.Run(serve+", "+stop, func(t *testing.T) {
				t.Parallel()
				m := h1
				if strings.HasSuffix(serve, "TLS") {
					m = h1tls
				}
				begun, release := make(chan struct{}), make(chan struct{})
				defer close(release)
				srv := newHTTPServer(m, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
					close(begun)
					<-release
				}))
				opts := quickly()
				opts.Shutdown = ShutdownOptions{GracePeriod: 200 * time.Millisecond}
				ts := &testServer{t: t, mode: m, http: srv, net: "tcp", served: make(chan error, 1)}
				ts.Server = Wrap(srv, opts)
				l, err := Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				ts.addr = l.Addr().String()
				if stop == "before" {
					ts.Shutdown(t.Context())
				}
				if stop == "hook fails" {
					ts.OnShutdown("hook", func(context.Context) error { return errors.New("disk full") })
				}
				go func() {
					switch serve {
					case "Serve":
						ts.served <- ts.Serve(l)
					case "ServeTLS":
						ts.served <- ts.ServeTLS(l, "", "")
					default:
						l.Close()
						srv.Addr = "127.0.0.1:0"
						if serve == "ListenAndServe" {
							ts.served <- ts.ListenAndServe()
						} else {
							ts.served <- ts.ListenAndServeTLS("", "")
						}
					}
				}()
				eventually(t, "it serves", func() bool { return ts.Phase() >= PhaseServing })
				if stop == "cut" && !strings.HasPrefix(serve, "Listen") {
					go ts.get(ts.client(), "/")
					<-begun
				}
				if stop == "Close" {
					ts.Close()
				} else {
					ts.Shutdown(t.Context())
				}
				if err := <-ts.served; err != http.ErrServerClosed {
					t.Errorf("%v, want http.ErrServerClosed itself", err)
				}
			})
		}
	}
}

// TestLateHooks: one that is registered while hooks run comes after those; what
// comes too late is said.
func TestLateHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startVirtual(t, Options{}, ok)
		var rec recorder
		v.log = rec.logger()
		var order []string
		v.OnShutdown("first", func(context.Context) error {
			order = append(order, "first")
			v.OnShutdown("by the first", func(ctx context.Context) error {
				order = append(order, "by the first")
				v.OnShutdown("by that one", func(context.Context) error {
					if d, ok := ctx.Deadline(); !ok || time.Until(d) <= 0 {
						t.Error("its context has no time left")
					}
					order = append(order, "by that one")
					return nil
				})
				return nil
			})
			return nil
		})
		v.OnShutdown("second", func(context.Context) error { order = append(order, "second"); return nil })
		<-v.shutdown()
		if got := strings.Join(order, ", "); got != "first, second, by the first, by that one" {
			t.Errorf("hooks ran in the order %q", got)
		}
		v.OnShutdown("late", func(context.Context) error { t.Error("a hook ran after the stop"); return nil })
		if !rec.contains("hook=late") {
			t.Error("the log does not say that a hook was too late")
		}
	})
}

// TestNoHookIsLost: those registered at any moment of a stop run, or the log says
// that they will not.
func TestNoHookIsLost(t *testing.T) {
	var rec recorder
	opts := quickly()
	opts.Logger = rec.logger()
	ts := startServer(t, h1, opts, ok)
	ts.awaitPhase(PhaseServing)
	var ran, registered, drained, told atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for { // the next, when the last one has run
				over := make(chan struct{})
				registered.Add(1)
				ts.OnShutdown("late", func(context.Context) error { ran.Add(1); close(over); return nil })
				told.Add(1)
				ts.RegisterOnShutdown(func() { drained.Add(1) })
				select {
				case <-over:
				case <-ts.done:
					return
				}
			}
		})
	}
	stopped := ts.shutdown()
	wg.Wait()
	ts.clean(stopped)
	said := func() (n int32) { // lines come when the log's reader has time
		rec.mu.Lock()
		defer rec.mu.Unlock()
		for _, l := range rec.lines {
			if strings.Contains(l, "hook=late") {
				n++
			}
		}
		return n
	}
	eventually(t, "each hook has run, or is said not to", func() bool { return ran.Load()+said() == registered.Load() })
	eventually(t, "all functions of RegisterOnShutdown have run", func() bool { return drained.Load() == told.Load() })
}

// TestCloseWithKeptSlots: connections are closed from outside while they keep a
// slot for their next request.
func TestCloseWithKeptSlots(t *testing.T) {
	run(t, h1Modes, func(t *testing.T, m mode) {
		for range 20 {
			opts := fairly(1)
			opts.Fairness.MaxInline = 100
			ts := startServer(t, m, opts, ok)
			var wg sync.WaitGroup
			for range 4 {
				c := ts.dial()
				wg.Go(func() {
					defer c.Close()
					for range 50 {
						if _, err := c.Write([]byte(strings.Repeat(request, 4))); err != nil {
							return
						}
						for range 4 {
							if _, _, err := c.response(); err != nil {
								return
							}
						}
					}
				})
			}
			eventually(t, "requests are answered", func() bool { return ts.Stats().Requests > 20 })
			for _, c := range ts.conns() {
				c.Cut()
			}
			ts.Close()
			wg.Wait()
			atRest(t, ts.Limiter())
		}
	})
}

// TestServedWhileItAccepts: a Listener of the user's own, at its limit and with
// newcomers, is given to a Server.
func TestServedWhileItAccepts(t *testing.T) {
	for range 20 {
		inner, err := Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := newListener(inner, ListenerOptions{MaxConns: 1, HandshakeGrace: time.Millisecond}, silent)
		accepted := emptiedSlowly(l)
		for range 5 {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		ts := &testServer{t: t, mode: h1, http: newHTTPServer(h1, http.HandlerFunc(ok)), net: "tcp", addr: l.Addr().String(), served: make(chan error, 1)}
		ts.Server = Wrap(ts.http, quickly())
		ts.serve(l)
		ts.awaitPhase(PhaseServing)
		ts.Close()
		<-accepted
		if n := ts.newcomers.Load(); n != 0 {
			t.Errorf("%d newcomers are counted in the end", n)
		}
	}
}

// emptiedSlowly accepts from l, and holds each connection for a moment.
func emptiedSlowly(l net.Listener) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			runtime.Gosched()
			c.Close()
		}
	}()
	return over
}
