package usher

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/seed-235859eb/usher/internal/memnet"
)

// endServe closes l, whose Serve returns while the server goes on.
func endServe(t *testing.T, l net.Listener, served <-chan error) {
	t.Helper()
	l.Close()
	if err := <-served; err == nil || errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve of a listener that was closed: %v", err)
	}
}

// TestEndedListenersAreForgotten: a stop neither warns of sockets that are gone,
// nor promises less because of them, and what they have counted stays.
func TestEndedListenersAreForgotten(t *testing.T) {
	for _, tt := range []struct {
		name string
		mode mode
		wrap func(*testing.T, net.Listener) net.Listener
	}{
		{"foreign", h1, func(_ *testing.T, l net.Listener) net.Listener { return l }},
		{"hidden", h1, func(_ *testing.T, l net.Listener) net.Listener { return struct{ net.Listener }{l} }},
		{"Listener", h1, func(t *testing.T, l net.Listener) net.Listener {
			ul, err := NewListener(l, ListenerOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return ul
		}},
		{"ServeTLS", h1tls, func(_ *testing.T, l net.Listener) net.Listener { return l }},
		{"tls.NewListener", h1tls, func(_ *testing.T, l net.Listener) net.Listener {
			return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{testCert()}})
		}},
		{"tls.NewListener, hidden", h1tls, func(t *testing.T, l net.Listener) net.Listener {
			ul, err := NewListener(l, ListenerOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return struct{ net.Listener }{tls.NewListener(ul, &tls.Config{Certificates: []tls.Certificate{testCert()}})}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const ended = 20
			var rec recorder
			opts := quickly()
			opts.Logger = rec.logger()
			ts := startServer(t, h1, opts, ok, func(ts *testServer) {
				if tt.name == "ServeTLS" {
					ts.http.TLSConfig = &tls.Config{Certificates: []tls.Certificate{testCert()}}
				}
			})
			for range ended {
				inner, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				other := &testServer{Server: ts.Server, t: t, mode: tt.mode, net: "tcp", addr: inner.Addr().String(), served: make(chan error, 1)}
				l := tt.wrap(t, inner)
				if tt.name == "ServeTLS" {
					other.serve(l)
				} else {
					go func() { other.served <- ts.Serve(l) }()
				}
				client := other.client()
				if _, err := other.get(client, "/"); err != nil {
					t.Fatal(err)
				}
				client.CloseIdleConnections()
				endServe(t, l, other.served)
			}
			eventually(t, "their connections have left", func() bool { return ts.Stats().Connections.Open == 0 })
			// The Close of a hidden listener is not waited for; who comes next finds it.
			eventually(t, "they are forgotten", func() bool {
				ts.listenerEmptied()
				listeners, _ := ts.known()
				return len(listeners) == 1
			})
			if st := ts.Stats(); st.Accepted != ended {
				t.Errorf("Stats.Accepted = %d, want %d", st.Accepted, ended)
			}
			if n := (control{ts.Server}).Counters().Accepted; n != ended {
				t.Errorf("a supervisor sees %d accepted connections, want %d", n, ended)
			}
			if r := ts.clean(ts.shutdown()); r.Guarantee != best(GuaranteeAll) || r.Open != 0 {
				t.Errorf("report %+v", r)
			}
			if bestGuarantee == GuaranteeAll && rec.contains("not stopped") {
				t.Errorf("the stop warns: %q", rec.lines)
			}
		})
	}
}

// TestEndedListenerWithConnections: the socket is gone, but the stop answers,
// waits for and counts the connections that came from it.
func TestEndedListenerWithConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startVirtual(t, Options{}, ok)
		other := memnet.Listen()
		served := make(chan error, 1)
		go func() { served <- v.Serve(other) }()
		c := v.dial()
		nc, err := other.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		d := newRawConn(t, nc)
		for _, c := range []*rawConn{c, d} {
			c.send(request)
			c.answered()
		}
		synctest.Wait()
		endServe(t, other, served)
		synctest.Wait()
		if st := v.Stats(); st.Connections.Open != 2 || st.Accepted != 2 {
			t.Errorf("stats %+v after one listener has ended", st)
		}
		took := v.shutdown()
		d.send(request)
		if !d.answered().Close {
			t.Error("the last response does not say close")
		}
		d.ended()
		c.ended()
		if d := <-took; d != defaultIdleGrace {
			t.Errorf("the stop took %v, want %v", d, defaultIdleGrace)
		}
		if r := v.Stats().Report; r.Open != 2 || r.Served != 1 || r.Idle != 1 {
			t.Errorf("report %+v", *r)
		}
	})
}

// TestEndedListenerWithItsLastConnection is forgotten, and no sooner.
func TestEndedListenerWithItsLastConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startVirtual(t, Options{Listener: ListenerOptions{MaxConns: 1}}, ok)
		other := memnet.Listen()
		served := make(chan error, 1)
		go func() { served <- v.Serve(other) }()
		var last *rawConn
		for range 3 { // of which two make room for the next
			nc, err := other.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			last = newRawConn(t, nc)
			last.send(request)
			last.answered()
		}
		endServe(t, other, served)
		synctest.Wait()
		if listeners, _ := v.known(); len(listeners) != 2 {
			t.Errorf("%d listeners are known while one has a connection, want 2", len(listeners))
		}
		last.Close()
		synctest.Wait()
		if listeners, _ := v.known(); len(listeners) != 1 {
			t.Errorf("%d listeners are known, want 1", len(listeners))
		}
		if st := v.Stats(); st.Accepted != 3 || st.IdleEvicted != 2 {
			t.Errorf("stats %+v", st)
		}
		<-v.shutdown()
	})
}

// TestServeAgain: a Listener that has ended counts once, however often it is
// served.
func TestServeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startVirtual(t, Options{}, ok)
		inner := memnet.Listen()
		l := newListener(inner, ListenerOptions{}, silent)
		var wg sync.WaitGroup
		var all []chan error
		for range 3 { // at once
			served := make(chan error, 1)
			all = append(all, served)
			wg.Go(func() { served <- v.Serve(l) })
		}
		nc, err := inner.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c := newRawConn(t, nc)
		c.send(request)
		c.answered()
		c.Close()
		synctest.Wait()
		l.Close()
		wg.Wait()
		for range 3 { // and once more
			served := make(chan error, 1)
			all = append(all, served)
			served <- v.Serve(l)
		}
		for _, served := range all {
			if err := <-served; !errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
				t.Errorf("Serve of a closed listener: %v", err)
			}
		}
		if listeners, _ := v.known(); len(listeners) != 1 || v.Stats().Accepted != 1 {
			t.Errorf("%d listeners are known, stats %+v", len(listeners), v.Stats())
		}
		<-v.shutdown()
	})
}

// TestEndedListenerPromisesNothing: nor does a stop promise less because of it,
// while a connection of it is still there.
func TestEndedListenerPromisesNothing(t *testing.T) {
	var rec recorder
	opts := quickly()
	opts.Logger = rec.logger()
	ts := startServer(t, h1, opts, ok)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := &testServer{Server: ts.Server, t: t, mode: h1, net: "tcp", addr: l.Addr().String(), served: make(chan error, 1)}
	other.serve(l)
	c := other.dial()
	c.send(request)
	c.answered()
	endServe(t, l, other.served)
	stopped := ts.shutdown()
	c.ended()
	if r := ts.clean(stopped); r.Guarantee != best(GuaranteeAll) || r.Open != 1 || r.Idle != 1 {
		t.Errorf("report %+v", r)
	}
	if bestGuarantee == GuaranteeAll && rec.contains("not stopped") {
		t.Errorf("the stop warns: %q", rec.lines)
	}
}
