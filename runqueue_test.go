package usher

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestRunServesWhatWaits: a listener that is given to Run has connections in its
// accept queue already, and the stop has begun in the same moment: they are
// served.
func TestRunServesWhatWaits(t *testing.T) {
	run(t, h1Modes, func(t *testing.T, m mode) {
		for range 10 {
			var clients []*rawConn
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			ts := &testServer{t: t, mode: m, http: newHTTPServer(m, http.HandlerFunc(ok)), net: "tcp"}
			ts.Server = Wrap(ts.http, quickly())
			var listeners []net.Listener
			for range 2 {
				l, err := Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				listeners = append(listeners, l)
			}
			result := make(chan error, 1)
			for _, l := range listeners {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				if !m.tls() {
					io.WriteString(c, request)
				}
				clients = append(clients, newRawConn(t, c))
			}
			go func() { result <- ts.RunUntil(ctx, listeners...) }()
			for _, c := range clients {
				if m.tls() {
					c = newRawConn(t, tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true}))
					c.send(request)
				}
				c.answered()
				c.Close()
			}
			if err := <-result; err != nil {
				t.Errorf("Run: %v", err)
			}
			ts.balanced()
		}
	})
}

// TestRunOddListeners: a nil listener is an error, whatever else is wrong.
func TestRunOddListeners(t *testing.T) {
	for _, opts := range []Options{quickly(), {Listener: ListenerOptions{MaxConns: -1}}} {
		l, err := Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := Wrap(newHTTPServer(h1, http.HandlerFunc(ok)), opts).RunUntil(t.Context(), nil, l); err == nil {
			t.Error("Run with a nil listener: nil")
		}
		if _, err := l.Accept(); err == nil {
			t.Error("the other listener is open")
		}
	}
}

// TestRunAllOddServers are told by their place, and none is started.
func TestRunAllOddServers(t *testing.T) {
	srv := newHTTPServer(h1, http.HandlerFunc(ok))
	srv.Addr = "127.0.0.1:0"
	s := Wrap(srv, quickly())
	for want, servers := range map[string][]*Server{
		"server 1 is nil":          {s, nil},
		"server 2 is server 0 too": {s, Wrap(srv, quickly()), s},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := RunAll(ctx, servers...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("RunAll: %v, want %q", err, want)
		}
		cancel()
	}
	if s.Phase() != PhaseStarting {
		t.Errorf("phase %v", s.Phase())
	}
}
