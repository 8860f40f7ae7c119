package goaway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/selfsigned"
)

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	cert, err := selfsigned.Certificate("usher.test")
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// a server's http.Server, its Door, and what ConnState is told.
type served struct {
	srv  *http.Server
	door *Door
	addr string

	mu     sync.Mutex
	states []string
}

// start serves TLS by a Door. A connection's type is told with its state.
func start(t *testing.T, setUp func(*http.Server), tlsItself bool) *served {
	t.Helper()
	s := &served{srv: &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Proto, " ", r.TLS != nil && r.TLS.NegotiatedProtocol == "h2" && r.TLS.HandshakeComplete)
		}),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate(t)}},
		ErrorLog:  log.New(io.Discard, "", 0),
	}}
	setUp(s.srv)
	s.door = NewDoor(s.srv)
	s.srv.BaseContext = func(l net.Listener) context.Context {
		plain, real := s.door.Enter(l)
		if got := fmt.Sprintf("%T", plain); real && got != "*tls.listener" {
			t.Errorf("the listener is a %s", got)
		}
		return context.Background()
	}
	s.srv.ConnState = func(c net.Conn, state http.ConnState) {
		_, frames := Plain(c)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.states = append(s.states, fmt.Sprintf("%v %v", state, frames != nil))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	result := make(chan error, 1)
	go func() {
		if tlsItself {
			cfg := s.srv.TLSConfig.Clone()
			cfg.NextProtos = []string{"h2", "http/1.1"}
			s.srv.TLSConfig = nil
			result <- s.door.Serve(tls.NewListener(l, cfg))
		} else {
			result <- s.door.ServeTLS(l, "", "")
		}
	}()
	t.Cleanup(func() {
		s.srv.Close()
		if err := <-result; err != http.ErrServerClosed {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

func (s *served) get(t *testing.T, http2 bool) string {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(!http2)
	tr.Protocols.SetHTTP2(http2)
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Get("https://" + s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (s *served) saw(state string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, have := range s.states {
		if have == state {
			return true
		}
	}
	return false
}

// TestDoorIsOpen fails when a release of Go serves HTTP/2 over TLS in another
// way than door_….go takes for granted.
func TestDoorIsOpen(t *testing.T) {
	for _, tlsItself := range []bool{false, true} {
		t.Run(fmt.Sprint("listener speaks TLS=", tlsItself), func(t *testing.T) {
			s := start(t, func(*http.Server) {}, tlsItself)
			if got := s.get(t, true); got != "HTTP/2.0 true" {
				t.Errorf("HTTP/2: %q", got)
			}
			for _, state := range []http.ConnState{http.StateActive, http.StateIdle} {
				if !s.saw(state.String() + " true") {
					t.Errorf("no %v connection whose frames are followed: %v", state, s.states)
				}
			}
			if got := s.get(t, false); got != "HTTP/1.1 false" {
				t.Errorf("HTTP/1: %q", got)
			}
		})
	}
}

// TestDoorStaysShut: an HTTP/2 that the user brings is left alone.
func TestDoorStaysShut(t *testing.T) {
	used := make(chan string, 1)
	s := start(t, func(srv *http.Server) {
		srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
			"h2": func(_ *http.Server, c *tls.Conn, _ http.Handler) {
				used <- c.ConnectionState().NegotiatedProtocol
			},
			"unencrypted_http2": func(*http.Server, *tls.Conn, http.Handler) {
				used <- "something without TLS"
			},
		}
	}, false)
	c, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	if got := <-used; got != "h2" || s.door.Own() {
		t.Errorf("the user's function got a connection that speaks %q", got)
	}
}

// TestDoorOfUnknownProtocol: net/http closes the connection, with a door and
// without.
func TestDoorOfUnknownProtocol(t *testing.T) {
	s := start(t, func(srv *http.Server) { srv.TLSConfig.NextProtos = []string{"spoken-by-nobody"} }, false)
	c, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"spoken-by-nobody"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: usher.test\r\n\r\n")
	if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestDoorOfManyListeners: each of them is served, and nothing races.
func TestDoorOfManyListeners(t *testing.T) {
	srv := &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate(t)}},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	door := NewDoor(srv)
	srv.BaseContext = func(l net.Listener) context.Context {
		door.Enter(l)
		return context.Background()
	}
	var all []*served
	var wg sync.WaitGroup
	for range 8 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &served{addr: l.Addr().String()})
		wg.Go(func() { door.ServeTLS(l, "", "") })
	}
	for _, s := range all {
		if got := s.get(t, true); got != "HTTP/2.0" {
			t.Errorf("got %q", got)
		}
	}
	srv.Close()
	wg.Wait()
}

// TestDoorOfServeTLS: what ServeTLS finds wrong is returned.
func TestDoorOfServeTLS(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	srv := new(http.Server)
	if err := NewDoor(srv).ServeTLS(l, "no such file", "no such file"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a certificate: %v", err)
	}
	srv.Close()
	if err := NewDoor(srv).ServeTLS(l, "", ""); err == nil {
		t.Error("after Close: nil")
	}
}

// TestPrefaceIsAwaited: a client may send it in pieces, and one that sends
// something else is turned away.
func TestPrefaceIsAwaited(t *testing.T) {
	s := start(t, func(*http.Server) {}, false)
	for _, tt := range []struct {
		pieces []string
		speaks bool
	}{
		{[]string{"PRI * HT", "TP/2.0\r\n\r\nSM\r", "\n\r\n", string(settings)}, true},
		{[]string{"GET / HTTP/1.1\r\nHost: usher.test\r\n\r\n"}, false},
	} {
		c, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		for _, p := range tt.pieces {
			io.WriteString(c, p)
		}
		f := afterBytes(0)
		acked := false
		for b := make([]byte, 1); !acked; {
			if _, err := c.Read(b); err != nil {
				break
			}
			f.advance(b)
			acked = f.between() && f.typ() == typeSettings && f.isAck()
		}
		if acked != tt.speaks {
			t.Errorf("%q: SETTINGS acknowledged: %v", tt.pieces, acked)
		}
	}
}
