package usher

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// pastUsher serves ts.http without usher, as a framework does, and returns when
// requests are answered.
func (ts *testServer) pastUsher(l net.Listener, serve func(net.Listener) error) {
	ts.t.Helper()
	ts.net, ts.addr, ts.served = l.Addr().Network(), l.Addr().String(), make(chan error, 1)
	go func() { ts.served <- serve(l) }()
	ts.t.Cleanup(func() { ts.Close() })
}

// TestServedPastUsher: the program, or a framework, calls Serve of the
// http.Server itself.
func TestServedPastUsher(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		for _, tt := range []struct {
			name  string
			setUp func(*http.Server) // what happens between Wrap and Serve
		}{
			{"plain", func(*http.Server) {}},
			{"handler set late", func(srv *http.Server) {
				srv.Handler = http.HandlerFunc(ok)
			}},
			{"BaseContext set late", func(srv *http.Server) {
				srv.BaseContext = func(net.Listener) context.Context { return context.Background() }
			}},
			{"ConnState and ConnContext set late", func(srv *http.Server) {
				srv.ConnState = func(net.Conn, http.ConnState) {}
				srv.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return ctx }
			}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				var rec recorder
				opts := quickly()
				opts.Logger = rec.logger()
				ts := &testServer{t: t, mode: m, http: newHTTPServer(m, http.HandlerFunc(ok))}
				ts.Server = Wrap(ts.http, opts)
				tt.setUp(ts.http)
				var shut atomic.Int32
				ts.http.RegisterOnShutdown(func() { shut.Add(1) })
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				ts.pastUsher(l, ts.serveDirectly)
				client := ts.client()
				if body, err := ts.get(client, "/"); body != "ok" || err != nil {
					t.Fatalf("got %q, %v", body, err)
				}
				client.CloseIdleConnections()
				eventually(t, "the log names the cure", func() bool {
					return rec.contains("call Serve, ListenAndServe or Run of usher.Server")
				})
				if p := ts.Phase(); p != PhaseServing {
					t.Errorf("phase %v, want serving", p)
				}
				if st := ts.Stats(); st.Accepted != 1 || st.Requests != 1 {
					t.Errorf("stats %+v after one request", st)
				}
				if err := ts.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				if err := <-ts.served; err != http.ErrServerClosed {
					t.Errorf("Serve: %v, want http.ErrServerClosed", err)
				}
				if r := ts.balanced(); r.Guarantee != GuaranteeNone || r.GateReason == "" {
					t.Errorf("report %+v", r)
				}
				if !rec.contains("level=WARN msg=\"usher: stopped\"") {
					t.Errorf("the stop looks clean: %q", rec.lines)
				}
				eventually(t, "the function of RegisterOnShutdown has run", func() bool { return shut.Load() > 0 })
				if n := shut.Load(); n != 1 {
					t.Errorf("the function of RegisterOnShutdown ran %d times", n)
				}
			})
		}
	})
}

// serveDirectly calls Serve or ServeTLS of the http.Server.
func (ts *testServer) serveDirectly(l net.Listener) error {
	if ts.mode.tls() {
		return ts.http.ServeTLS(l, "", "")
	}
	return ts.http.Serve(l)
}

// TestListenerServedPastUsher: it is one of ours, so nothing is lost.
func TestListenerServedPastUsher(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		opts := quickly()
		opts.Shutdown.IdleGrace = 20 * time.Second // the request ends it
		ts := &testServer{t: t, mode: m, http: newHTTPServer(m, http.HandlerFunc(ok))}
		ts.Server = Wrap(ts.http, opts)
		inner, err := Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, err := NewListener(inner, opts.Listener)
		if err != nil {
			t.Fatal(err)
		}
		ts.pastUsher(l, ts.serveDirectly)
		c := ts.dial()
		if m.http2() {
			c.getStream(1)
			c.readUntil("response", endOf(1))
		} else {
			c.send(request)
			c.answered()
		}
		stopped := ts.shutdown()
		if m.http2() {
			c.readUntil("GOAWAY", isGoAway)
			c.Close()
		} else {
			ts.awaitPhase(PhaseDrain)
			c.send(request)
			if !c.answered().Close {
				t.Error("the last response does not say close")
			}
			c.ended()
		}
		if r := ts.clean(stopped); r.Guarantee != best(GuaranteeAll) || r.Open != 1 {
			t.Errorf("report %+v", r)
		}
	})
}

// TestStopPastUsherEnds although clients go on to connect: usher does not have
// the listener, and cannot keep them out.
func TestStopPastUsherEnds(t *testing.T) {
	opts := quickly()
	// Each request is answered when the next has begun, so that one is always
	// under way.
	var mu sync.Mutex
	latest := make(chan struct{})
	refused := make(chan struct{})
	ts := &testServer{t: t, mode: h1, http: newHTTPServer(h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		close(latest)
		mine := make(chan struct{})
		latest = mine
		mu.Unlock()
		select {
		case <-mine:
		case <-refused: // there is no next one
		}
		ok(w, r)
	}))}
	ts.Server = Wrap(ts.http, opts)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ts.pastUsher(l, ts.http.Serve)
	var wg sync.WaitGroup
	var answered atomic.Int32
	var once sync.Once
	for range 2 {
		wg.Go(func() {
			for {
				c, err := net.Dial("tcp", ts.addr)
				if err != nil { // the stop has closed the listener
					once.Do(func() { close(refused) })
					return
				}
				io.WriteString(c, request)
				if n, _ := c.Read(make([]byte, 1000)); n > 0 {
					answered.Add(1)
				}
				c.Close()
			}
		})
	}
	eventually(t, "requests are answered", func() bool { return answered.Load() > 10 })
	if err := ts.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if r := ts.balanced(); r.Guarantee != GuaranteeNone {
		t.Errorf("report %+v", r)
	}
	if err := <-ts.served; err != http.ErrServerClosed {
		t.Errorf("Serve: %v, want http.ErrServerClosed", err)
	}
}

// TestBypassAtAnyTime: the http.Server's own Shutdown or Close is called while
// ours is at work. The stop says so, and functions of RegisterOnShutdown run
// once.
func TestBypassAtAnyTime(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		for _, how := range []string{"Shutdown", "Close"} {
			for _, phase := range []Phase{PhaseLameDuck, PhaseDrain} {
				t.Run(fmt.Sprint(how, " in ", phase), func(t *testing.T) {
					t.Parallel()
					var rec recorder
					opts := quickly()
					opts.Logger = rec.logger()
					opts.Shutdown.Delay = 10 * time.Second
					opts.Shutdown.IdleGrace = 10 * time.Second
					g := newGated()
					ts := startServer(t, m, opts, g.ServeHTTP)
					// A silent connection keeps the stop in its drain.
					mute, err := net.Dial("tcp", ts.addr)
					if err != nil {
						t.Fatal(err)
					}
					defer mute.Close()
					var shut, drained atomic.Int32
					ts.http.RegisterOnShutdown(func() { shut.Add(1) })
					ts.RegisterOnShutdown(func() { drained.Add(1) })
					client := ts.client()
					got := make(chan error, 1)
					go func() {
						_, err := ts.get(client, "/")
						got <- err
					}()
					<-g.begun
					stopped := ts.shutdown()
					ts.awaitPhase(PhaseLameDuck)
					if phase == PhaseDrain {
						ts.endLameDuck("test")
						ts.awaitPhase(PhaseDrain)
					}
					direct := make(chan error, 1)
					go func() {
						if how == "Close" {
							direct <- ts.http.Close()
						} else {
							direct <- ts.http.Shutdown(context.Background())
						}
					}()
					eventually(t, "it is seen", func() bool { return rec.contains("called directly") })
					if how == "Close" { // it has closed the connections when it returns
						direct <- <-direct
					}
					ts.endLameDuck("test")
					close(g.release)
					mute.Close()
					if err := <-got; (err == nil) != (how == "Shutdown") {
						t.Errorf("the request: %v", err)
					}
					client.CloseIdleConnections()
					if err := <-direct; err != nil {
						t.Error(err)
					}
					var se *ShutdownError
					if err := <-stopped; !errors.As(err, &se) || se.Report.Guarantee != GuaranteeNone {
						t.Errorf("Shutdown: %v", err)
					}
					if err := <-ts.served; err != http.ErrServerClosed {
						t.Errorf("Serve: %v, want http.ErrServerClosed", err)
					}
					if r := ts.balanced(); r.Guarantee != GuaranteeNone {
						t.Errorf("report %+v", r)
					}
					want := int32(1)
					if how == "Close" {
						want = 0 // as ever with net/http
					}
					eventually(t, "functions of RegisterOnShutdown have run", func() bool { return shut.Load() >= want && drained.Load() > 0 })
					if n, d := shut.Load(), drained.Load(); n != want || d != 1 {
						t.Errorf("those of the http.Server ran %d times, ours %d times", n, d)
					}
				})
			}
		}
	})
}

// TestTLSListenerPastUsher: a TLS listener of the user's over one of ours that
// the http.Server serves directly.
func TestTLSListenerPastUsher(t *testing.T) {
	opts := quickly()
	ts := &testServer{t: t, mode: h1tls, http: newHTTPServer(h1, http.HandlerFunc(ok))}
	ts.Server = Wrap(ts.http, opts)
	inner, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ul, err := NewListener(inner, opts.Listener)
	if err != nil {
		t.Fatal(err)
	}
	ts.pastUsher(tls.NewListener(ul, &tls.Config{Certificates: []tls.Certificate{testCert()}}), ts.http.Serve)
	c := ts.dial()
	c.send(request)
	c.answered()
	stopped := ts.shutdown()
	c.ended()
	if r := ts.clean(stopped); r.Guarantee != best(GuaranteeAll) || r.Idle != 1 {
		t.Errorf("report %+v", r)
	}
}

// TestServedAndStoppedPastUsher: a framework does both. The stop is not clean,
// and says so, but it happens.
func TestServedAndStoppedPastUsher(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		ts := &testServer{t: t, mode: m, http: newHTTPServer(m, http.HandlerFunc(ok))}
		ts.Server = Wrap(ts.http, quickly())
		hooked := make(chan struct{})
		ts.OnShutdown("hook", func(context.Context) error { close(hooked); return nil })
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ts.pastUsher(l, ts.serveDirectly)
		client := ts.client()
		if _, err := ts.get(client, "/"); err != nil {
			t.Fatal(err)
		}
		client.CloseIdleConnections()
		if err := ts.http.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		<-hooked
		var se *ShutdownError
		if err := ts.Shutdown(t.Context()); !errors.As(err, &se) || !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Shutdown: %v", err)
		}
		if r := ts.balanced(); r.Guarantee != GuaranteeNone {
			t.Errorf("report %+v", r)
		}
	})
}
