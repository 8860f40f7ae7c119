package usher

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestQueueUnderTLSIsServed: a TLS listener of the user's own does not keep a
// stop from the socket below.
func TestQueueUnderTLSIsServed(t *testing.T) {
	const queued = 30
	for _, tt := range []struct {
		name    string
		network string
		listen  func(network, address string) (net.Listener, error)
		want    Guarantee
	}{
		{"over Listen", "tcp", Listen, best(GuaranteeAll)},
		{"over Listen, unix", "unix", Listen, best(GuaranteeAll)},
		{"over net.Listen", "tcp", net.Listen, best(GuaranteeQueue)},
		{"over a Listener", "tcp", func(network, address string) (net.Listener, error) {
			l, err := Listen(network, address)
			if err != nil {
				return nil, err
			}
			return NewListener(l, ListenerOptions{})
		}, best(GuaranteeAll)},
	} {
		for _, how := range []string{"Serve", "Run", "a Listener around it"} {
			t.Run(tt.name+", "+how, func(t *testing.T) {
				t.Parallel()
				address := "127.0.0.1:0"
				if tt.network == "unix" {
					address = t.TempDir() + "/s"
				}
				inner, err := tt.listen(tt.network, address)
				if err != nil {
					t.Fatal(err)
				}
				ts := &testServer{t: t, mode: h1tls, http: newHTTPServer(h1, http.HandlerFunc(ok)), net: tt.network, addr: inner.Addr().String(), served: make(chan error, 1)}
				paused, resume := make(chan struct{}), make(chan struct{})
				var once sync.Once
				ts.http.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
					once.Do(func() { // between two calls of Accept
						close(paused)
						<-resume
					})
					return ctx
				}
				opts := quickly()
				opts.Shutdown.IdleGrace = 20 * time.Second
				ts.Server = Wrap(ts.http, opts)
				l := tls.NewListener(inner, &tls.Config{Certificates: []tls.Certificate{testCert()}})
				if how == "a Listener around it" {
					if l, err = NewListener(l, opts.Listener); err != nil {
						t.Fatal(err)
					}
				}
				ran := make(chan error, 1)
				if how == "Run" {
					go func() {
						ran <- ts.Run(t.Context(), l)
						ts.served <- http.ErrServerClosed
					}()
				} else {
					go func() { ts.served <- ts.Serve(l) }()
					ran <- nil
				}
				dial := func() net.Conn {
					c, err := net.Dial(tt.network, ts.addr)
					if err != nil {
						t.Fatal(err)
					}
					c.SetDeadline(time.Now().Add(time.Minute))
					return c
				}
				first := dial()
				<-paused
				var wg sync.WaitGroup
				for i := range queued {
					c := tls.Client(dial(), &tls.Config{InsecureSkipVerify: true})
					wg.Go(func() {
						defer c.Close()
						io.WriteString(c, request)
						resp, err := http.ReadResponse(bufio.NewReader(c), nil)
						if err != nil {
							t.Errorf("connection %d: %v", i, err)
							return
						}
						io.Copy(io.Discard, resp.Body)
					})
				}
				stopped := ts.shutdown()
				ts.awaitPhase(PhaseGate)
				first.Close()
				close(resume)
				wg.Wait()
				if r := ts.clean(stopped); r.Guarantee != tt.want || r.Cut != 0 {
					t.Errorf("report %+v, want guarantee %v", r, tt.want)
				}
				if err := <-ran; err != nil {
					t.Errorf("Run: %v", err)
				}
			})
		}
	}
}

// emptied accepts from l until it is closed.
func emptied(l net.Listener) (accepted <-chan int) {
	n := make(chan int, 1)
	go func() {
		for i := 0; ; i++ {
			c, err := l.Accept()
			if err != nil {
				n <- i
				return
			}
			c.Close()
		}
	}()
	return n
}

// TestDrainClaimsNoMore than was done: what is in the queue of a socket that is
// closed is reset.
func TestDrainClaimsNoMore(t *testing.T) {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for _, tt := range []struct {
		name  string
		most  Guarantee
		drain func(*Listener) (Guarantee, error)
	}{
		{"its context ended before", GuaranteeNone, func(l *Listener) (Guarantee, error) { return l.Drain(over) }},
		{"and once more", GuaranteeNone, func(l *Listener) (Guarantee, error) {
			l.Drain(over)
			return l.Drain(context.Background())
		}},
		{"Close before", GuaranteeNone, func(l *Listener) (Guarantee, error) {
			l.Close()
			return l.Drain(context.Background())
		}},
		{"Close meanwhile", GuaranteeNone, func(l *Listener) (Guarantee, error) {
			time.AfterFunc(time.Millisecond, func() { l.Close() })
			return l.Drain(context.Background())
		}},
	} {
		for _, network := range []string{"tcp", "unix", "tls"} {
			t.Run(tt.name+"/"+network, func(t *testing.T) {
				for range 20 {
					address := "127.0.0.1:0"
					if network == "unix" {
						address = t.TempDir() + "/s"
					}
					inner, err := Listen(strings.Replace(network, "tls", "tcp", 1), address)
					if err != nil {
						t.Fatal(err)
					}
					c, err := net.Dial(inner.Addr().Network(), inner.Addr().String())
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					if network == "tls" {
						inner = tls.NewListener(inner, &tls.Config{Certificates: []tls.Certificate{testCert()}})
					}
					l := newListener(inner, ListenerOptions{HandshakeGrace: time.Minute}, silent)
					defer l.Close()
					if g, err := tt.drain(l); g > tt.most {
						t.Fatalf("Drain = %v, %v with a connection in a queue that nobody served", g, err)
					}
					if g := l.result().guarantee(); g > tt.most {
						t.Fatalf("the result is %v", g)
					}
				}
			})
		}
	}
}

// TestSecondDrain: its context ends long before the first one's grace, which
// changes nothing for the first.
func TestSecondDrain(t *testing.T) {
	for range 20 {
		inner, err := Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := newListener(inner, ListenerOptions{HandshakeGrace: time.Minute}, silent)
		const queued = 3
		for range queued {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		type result struct {
			g   Guarantee
			err error
		}
		first := make(chan result, 1)
		go func() {
			g, err := l.Drain(context.Background())
			first <- result{g, err}
		}()
		eventually(t, "the first has begun", func() bool { return l.conns.Stopping() })
		over, cancel := context.WithCancel(context.Background())
		cancel()
		if g, err := l.Drain(over); g != GuaranteeNone || !errors.Is(err, context.Canceled) {
			// The first may be over already, if nobody has waited in the queue.
			t.Errorf("the second Drain = %v, %v", g, err)
		}
		accepted := emptied(l)
		if r := <-first; r.g != best(GuaranteeAll) || r.err != nil {
			t.Errorf("the first Drain = %v, %v", r.g, r.err)
		}
		l.Close()
		if n := <-accepted; n != queued {
			t.Errorf("%d of %d connections were accepted", n, queued)
		}
	}
}

// TestAbstractSocket: its name cannot be taken away, so that who connects at the
// last moment is lost. A stop says so.
func TestAbstractSocket(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("abstract sockets are Linux's")
	}
	for _, how := range []string{"Drain", "Shutdown"} {
		inner, err := Listen("unix", fmt.Sprintf("@usher-test-%d", time.Now().UnixNano()))
		if err != nil {
			t.Fatal(err)
		}
		var g Guarantee
		if how == "Drain" {
			l := newListener(inner, ListenerOptions{}, silent)
			accepted := emptied(l)
			if g, err = l.Drain(t.Context()); err != nil {
				t.Error(err)
			}
			l.Close()
			<-accepted
		} else {
			ts := &testServer{t: t, mode: h1, http: newHTTPServer(h1, http.HandlerFunc(ok)), net: "unix", addr: inner.Addr().String(), served: make(chan error, 1)}
			ts.Server = Wrap(ts.http, quickly())
			ts.serve(inner)
			if _, err := ts.get(ts.client(), "/"); err != nil {
				t.Error(err)
			}
			g = ts.clean(ts.shutdown()).Guarantee
		}
		if g != GuaranteeQueue {
			t.Errorf("%s: guarantee %v, want queue", how, g)
		}
	}
}

// TestImpatientCaller: who waits for a stop no longer learns what is left, and
// not that it was cut.
func TestImpatientCaller(t *testing.T) {
	for _, phase := range []Phase{PhaseLameDuck, PhaseDrain, PhaseFinish} {
		t.Run(phase.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				opts := Options{}
				if phase == PhaseLameDuck {
					opts.Shutdown.Delay = 3 * time.Second
				}
				v := startVirtual(t, opts, func(w http.ResponseWriter, r *http.Request) {
					if phase == PhaseFinish {
						c, _, err := http.NewResponseController(w).Hijack()
						if err != nil {
							t.Error(err)
							return
						}
						time.Sleep(10 * time.Second)
						c.Close()
						return
					}
					time.Sleep(10 * time.Second)
					ok(w, r)
				})
				c := v.dial()
				defer c.Close()
				c.send(request)
				synctest.Wait()
				took := v.shutdown()
				time.Sleep(time.Second)
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				err := v.Shutdown(ctx)
				if d := time.Since(began); d != time.Second {
					t.Errorf("it waited %v, want 1s", d)
				}
				var se *ShutdownError
				if !errors.As(err, &se) || se.Phase != phase || !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("Shutdown: %v", err)
				}
				r := se.Report
				want := 1
				if phase == PhaseLameDuck {
					want = 0 // no connection's fate is counted yet
				}
				if r.Cut != 0 || r.StillOpen != want || r.Open != want || strings.Contains(err.Error(), "cut") {
					t.Errorf("%v; report %+v", err, r)
				}
				if phase != PhaseFinish {
					c.answered()
				}
				c.Close()
				<-took
				if r := v.Stats().Report; r.Cut != 0 || r.StillOpen != 0 {
					t.Errorf("in the end: report %+v", *r)
				}
			})
		})
	}
}
