package limit

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/memnet"
	"github.com/seed-235859eb/usher/internal/selfsigned"
	"github.com/seed-235859eb/usher/internal/track"
)

// A mode is a protocol that a behaviour is tested over.
type mode string

const (
	h1    mode = "h1"
	h1tls mode = "h1tls"
	h2    mode = "h2"
	h2c   mode = "h2c"
)

var allModes = []mode{h1, h1tls, h2, h2c}

func (m mode) tls() bool   { return m == h1tls || m == h2 }
func (m mode) http2() bool { return m == h2 || m == h2c }

var testCert = sync.OnceValue(func() tls.Certificate {
	cert, err := selfsigned.Certificate("usher.test")
	if err != nil {
		panic(err)
	}
	return cert
})

// inBubbles runs f in virtual time for each protocol.
func inBubbles(t *testing.T, f func(*testing.T, mode)) {
	t.Helper()
	testCert()
	for _, m := range allModes {
		t.Run(string(m), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, m) })
		})
	}
}

// A server is an http.Server whose connections are followed, as usher's are.
type server struct {
	t    *testing.T
	mode mode
	http *http.Server
	dial func(context.Context) (net.Conn, error)
}

type followed struct {
	net.Listener
	set *track.Set
}

func (l followed) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.set.Add(c), nil
}

type nobody struct{}

func (nobody) Notice(*track.Conn, track.Events) {}

// start serves h in memory until the test ends.
func start(t *testing.T, m mode, h http.Handler, setUp ...func(*http.Server)) *server {
	l := memnet.Listen()
	return startOn(t, m, l, l.Dial, h, setUp...)
}

// startOnSocket serves h on a socket until the test ends.
func startOnSocket(t *testing.T, m mode, h http.Handler, setUp ...func(*http.Server)) *server {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, m, l, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}, h, setUp...)
}

func startOn(t *testing.T, m mode, l net.Listener, dial func(context.Context) (net.Conn, error), h http.Handler, setUp ...func(*http.Server)) *server {
	srv := &http.Server{
		Handler: h, ErrorLog: log.New(io.Discard, "", 0), Protocols: new(http.Protocols),
		ConnContext: NewContext,
		ConnState:   func(c net.Conn, s http.ConnState) { track.Of(c).Report(c, s) },
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(m == h2)
	srv.Protocols.SetUnencryptedHTTP2(m == h2c)
	for _, f := range setUp {
		f(srv)
	}
	served := make(chan error, 1)
	go func() {
		l := followed{l, track.NewSet(nobody{})}
		if m.tls() {
			srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{testCert()}}
			served <- srv.ServeTLS(l, "", "")
		} else {
			served <- srv.Serve(l)
		}
	}()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	return &server{t, m, srv, dial}
}

// client returns a client with connections of its own.
func (s *server) client() *http.Client {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		Protocols:       new(http.Protocols),
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx) },
	}
	tr.Protocols.SetHTTP1(!s.mode.http2())
	tr.Protocols.SetHTTP2(s.mode == h2)
	tr.Protocols.SetUnencryptedHTTP2(s.mode == h2c)
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// send sends a request over a connection of its own, and returns what becomes
// of it.
func (s *server) send(path string, body io.Reader) <-chan answer {
	method, scheme := "GET", "http"
	if body != nil {
		method = "POST"
	}
	if s.mode.tls() {
		scheme = "https"
	}
	r, err := http.NewRequest(method, scheme+"://usher.test"+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	got := make(chan answer, 1)
	client := s.client()
	go func() {
		resp, err := client.Do(r)
		if err != nil {
			got <- answer{err: err}
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		got <- answer{string(b), err}
	}()
	return got
}

type answer struct {
	body string
	err  error
}

// limited puts h behind l.
func limited(l *Limiter, h http.HandlerFunc) http.Handler { return keyed(l, "", h) }

// keyed puts h behind l, with one flow for all.
func keyed(l *Limiter, key string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if v := l.Serve(w, r, key, 1, h); v != Served {
			http.Error(w, fmt.Sprint("verdict ", v), http.StatusServiceUnavailable)
		}
	})
}

// An upload is a body that arrives as the test says.
type upload struct {
	*io.PipeReader
	w *io.PipeWriter
}

func newUpload() upload {
	r, w := io.Pipe()
	return upload{r, w}
}

// at has the body's next bytes sent when d has passed.
func (u upload) at(d time.Duration, size int) {
	time.AfterFunc(d, func() { io.WriteString(u.w, strings.Repeat("x", size)) })
}

// endAt has the last ones sent.
func (u upload) endAt(d time.Duration, size int) {
	time.AfterFunc(d, func() {
		io.WriteString(u.w, strings.Repeat("x", size))
		u.w.Close()
	})
}

// connect returns a connection, with TLS if the mode has that.
func (s *server) connect() net.Conn {
	s.t.Helper()
	c, err := s.dial(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if s.mode.tls() {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	}
	return c
}
