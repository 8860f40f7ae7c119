package track

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"testing"
	"time"
)

// A mode is what a server speaks, and what its client does.
type mode struct {
	name                    string
	tls, http2, speaksHTTP2 bool
}

var (
	http1Modes = []mode{
		{"plain", false, false, false},
		{"plain, HTTP2 enabled", false, true, false},
		{"TLS", true, false, false},
		{"TLS, HTTP2 enabled", true, true, false},
	}
	http2Modes = []mode{
		{"h2c", false, true, true},
		{"HTTP2 over TLS", true, true, true},
	}
	allModes = append(http1Modes[:len(http1Modes):len(http1Modes)], http2Modes...)
)

func run(t *testing.T, modes []mode, f func(t *testing.T, m mode)) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			f(t, m)
		})
	}
}

// server returns a server that speaks m.
func (m mode) server(t *testing.T, h http.HandlerFunc) *http.Server {
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0), Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(m.tls && m.http2)
	srv.Protocols.SetUnencryptedHTTP2(!m.tls && m.http2)
	if m.tls {
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{testCert(t)}}
	}
	return srv
}

// serve serves on l until the test ends.
func (m mode) serve(t *testing.T, srv *http.Server, l net.Listener) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if m.tls {
			srv.ServeTLS(l, "", "")
		} else {
			srv.Serve(l)
		}
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
}

// client returns a client of one connection.
func (m mode) client(t *testing.T, addr string) *http.Client {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		Protocols:       new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
	}
	tr.Protocols.SetHTTP1(!m.speaksHTTP2)
	tr.Protocols.SetHTTP2(m.tls && m.speaksHTTP2)
	tr.Protocols.SetUnencryptedHTTP2(!m.tls && m.speaksHTTP2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (m mode) url() string {
	if m.tls {
		return "https://usher.test/"
	}
	return "http://usher.test/"
}

// dial returns a connection to write requests to by hand.
func (m mode) dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if m.tls {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// listenerFunc is a listener whose connections are wrapped by f.
type listenerFunc struct {
	net.Listener
	wrap func(net.Conn) net.Conn
}

func (l listenerFunc) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(c), nil
}

type connKey struct{}

// withConn is a ConnContext that lets handlers find their connection.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

const (
	aGet  = "GET / HTTP/1.1\r\nHost: usher.test\r\n\r\n"
	aPost = "POST / HTTP/1.1\r\nHost: usher.test\r\nContent-Length: 10\r\n\r\n"
)
