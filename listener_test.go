package usher

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/memnet"
)

// TestDrainOfAListenerAlone: for servers that are not net/http's.
func TestDrainOfAListenerAlone(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = t.TempDir() + "/s"
			}
			inner, err := Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			l, err := NewListener(inner, ListenerOptions{HandshakeGrace: 10 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			const queued = 10
			for range queued {
				c, err := net.Dial(network, inner.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			}
			eventually(t, "the connections are in the queue", func() bool {
				n, err := l.Queued()
				if err != nil {
					t.Fatal(err)
				}
				return n == queued || n == 1 && (network != "tcp" || bestGuarantee < GuaranteeAll)
			})
			accepted := make(chan int)
			go func() {
				n := 0
				for {
					c, err := l.Accept()
					if err != nil {
						if !errors.Is(err, net.ErrClosed) {
							t.Errorf("Accept: %v", err)
						}
						accepted <- n
						return
					}
					c.Close()
					n++
				}
			}()
			if g, err := l.Drain(t.Context()); g != best(GuaranteeAll) || err != nil {
				t.Errorf("Drain = %v, %v", g, err)
			}
			if _, err := net.Dial(network, inner.Addr().String()); err == nil {
				t.Error("connect succeeded after Drain")
			}
			if _, err := os.Stat(address); network == "unix" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket's name is still there: %v", err)
			}
			select {
			case <-accepted:
				t.Fatal("Accept returned before Close")
			default:
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if n := <-accepted; n != queued {
				t.Errorf("%d of %d connections were accepted", n, queued)
			}
			if g, err := l.Drain(t.Context()); g != best(GuaranteeAll) || err != nil {
				t.Errorf("second Drain = %v, %v", g, err)
			}
		})
	}
}

// TestUnixSocketOfAnother: a name that the listener does not own stays.
func TestUnixSocketOfAnother(t *testing.T) {
	path := t.TempDir() + "/s"
	inner, err := Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	inner.(*net.UnixListener).SetUnlinkOnClose(false) // as for a socket of systemd's
	l := newListener(inner, ListenerOptions{}, silent)
	defer l.Close()
	if _, err := l.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// TestDrainWithoutTheGate: a Multipath TCP socket, or one that is hidden.
func TestDrainWithoutTheGate(t *testing.T) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	multipath, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hidden, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		inner net.Listener
		want  Guarantee
	}{
		{"multipath", multipath, GuaranteeQueue},
		{"hidden", struct{ net.Listener }{hidden}, GuaranteeNone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newListener(tt.inner, ListenerOptions{}, silent)
			defer l.Close()
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Close()
				}
			}()
			g, err := l.Drain(t.Context())
			if err != nil || g != tt.want {
				t.Errorf("Drain = %v, %v, want %v", g, err, tt.want)
			}
			if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
				t.Error("connect succeeded after Drain")
			}
		})
	}
}

// TestSharedSocketStaysOpen: when another process has the socket, too, a stop
// here must not keep anybody out there.
func TestSharedSocketStaysOpen(t *testing.T) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // a socket that could be gated
	inner, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := inner.(*net.TCPListener).File() // as an heir has it
	if err != nil {
		t.Fatal(err)
	}
	heir, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer heir.Close()
	ts := &testServer{t: t, mode: h1, http: newHTTPServer(h1, http.HandlerFunc(ok)), net: "tcp", addr: inner.Addr().String(), served: make(chan error, 1)}
	ts.Server = Wrap(ts.http, quickly())
	ts.serve(inner)
	ts.awaitPhase(PhaseServing)
	if r := ts.clean(ts.shutdown()); r.Guarantee != GuaranteeQueue {
		t.Errorf("report %+v", r)
	}
	c, err := net.DialTimeout("tcp", heir.Addr().String(), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c, err = heir.Accept(); err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestDrainCutShort(t *testing.T) {
	inner, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(inner, ListenerOptions{HandshakeGrace: time.Nanosecond}, silent)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	g, err := l.Drain(ctx) // nobody accepts
	if g != GuaranteeNone || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Drain = %v, %v", g, err)
	}
	if n, qerr := l.Queued(); qerr == nil || n > 0 {
		t.Errorf("Queued = %d, %v after the socket was closed", n, qerr)
	}
	if want := "1 connections in the accept queue"; bestGuarantee == GuaranteeAll && !strings.Contains(err.Error(), want) {
		t.Errorf("the error does not say %q: %v", want, err)
	}
}

// TestTLSListenerOnTop: a TLS listener of the user's own, over ours and over
// another.
func TestTLSListenerOnTop(t *testing.T) {
	for _, tt := range []struct {
		name string
		ours bool
		hide bool
		want Guarantee
	}{
		{"over a Listener", true, false, best(GuaranteeAll)},
		{"over that of Listen", false, false, best(GuaranteeAll)}, // usher reaches through it (#12)
		{"hidden", false, true, GuaranteeNone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts := quickly()
			inner, err := Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addr := inner.Addr().String()
			if tt.ours {
				if inner, err = NewListener(inner, opts.Listener); err != nil {
					t.Fatal(err)
				}
			}
			ts := &testServer{t: t, mode: h1tls, http: newHTTPServer(h1, nil), net: "tcp", addr: addr, served: make(chan error, 1)}
			g := newGated()
			ts.http.Handler = g
			ts.Server = Wrap(ts.http, opts)
			tl := tls.NewListener(inner, &tls.Config{Certificates: []tls.Certificate{testCert()}})
			if tt.hide {
				tl = struct{ net.Listener }{tl}
			}
			go func() { ts.served <- ts.Serve(tl) }()
			client := ts.client()
			got := make(chan error, 1)
			go func() {
				_, err := ts.get(client, "/")
				got <- err
			}()
			<-g.begun
			silent := ts.dial()
			eventually(t, "both connections are known", func() bool { return ts.Stats().Connections.Open == 2 })
			stopped := ts.shutdown()
			ts.awaitPhase(PhaseDrain)
			close(g.release)
			if err := <-got; err != nil {
				t.Error(err)
			}
			client.CloseIdleConnections()
			if !tt.hide {
				silent.ended()
			} else {
				silent.Close() // usher cannot tell whether it is silent
			}
			if r := ts.clean(stopped); r.Guarantee != tt.want || r.Open != 2 {
				t.Errorf("report %+v, want guarantee %v", r, tt.want)
			}
		})
	}
}

func TestListenerMaxConnsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := memnet.Listen()
		l := newListener(inner, ListenerOptions{MaxConns: 2}, silent)
		accepted := make(chan net.Conn)
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
		var servers []net.Conn
		for range 3 {
			c, err := inner.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if len(servers) < 2 {
				servers = append(servers, <-accepted)
			}
		}
		synctest.Wait()
		select {
		case <-accepted:
			t.Fatal("a third connection got in")
		default:
		}
		servers[0].Close()
		servers = append(servers, <-accepted)
		// Close ends the wait of the next one.
		c, err := inner.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		synctest.Wait()
		l.Close()
		<-closed
		for _, c := range servers[1:] {
			c.Close()
		}
		synctest.Wait()
		if n, _ := l.conns.Open(); n != 0 {
			t.Errorf("%d connections are counted as open", n)
		}
	})
}

// TestManyAccept: newcomers in several calls of Accept do not take places from
// each other.
func TestManyAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 20
		inner := memnet.Listen()
		l := newListener(inner, ListenerOptions{MaxConns: 1}, silent)
		done := make(chan struct{})
		for range 3 {
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						done <- struct{}{}
						return
					}
					time.Sleep(time.Second)
					c.Close()
				}
			}()
		}
		began := time.Now()
		for range n {
			c, err := inner.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		for left := true; left; {
			time.Sleep(time.Second)
			counts := l.conns.Counts()
			left = counts.Accepted < n || counts.Open > 0
		}
		if d := time.Since(began); d > (n+1)*time.Second {
			t.Errorf("%d connections of a second each, one at a time, took %v", n, d)
		}
		l.Close()
		for range 3 {
			<-done
		}
	})
}
