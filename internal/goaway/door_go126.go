//go:build !go1.27

package goaway

import (
	"crypto/tls"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Up to Go 1.26, net/http gives a connection that has negotiated HTTP/2 to the
// function in TLSNextProto["h2"], which it puts there before the first call of
// BaseContext. The one that takes its place hands the connection on to another
// of net/http's, that for connections without TLS: it takes any net.Conn, in a
// wrapping, and the preface must have been read.

const (
	overTLS    = "h2"
	withoutTLS = "unencrypted_http2"
)

// WrapsHTTP1 reports whether net/http has a TLSConn for HTTP/1 over TLS, too.
const WrapsHTTP1 = false

type doorState struct {
	mu    sync.Mutex             // held while the first call is on its way to Enter
	open  bool                   // Enter has been there; guarded by mu
	first atomic.Pointer[func()] // unlocks mu for Enter
}

// Serve is [http.Server.Serve].
func (d *Door) Serve(l net.Listener) error {
	return d.serve(func() error { return d.srv.Serve(l) })
}

// ServeTLS is [http.Server.ServeTLS].
func (d *Door) ServeTLS(l net.Listener, certFile, keyFile string) error {
	return d.serve(func() error { return d.srv.ServeTLS(l, certFile, keyFile) })
}

// serve calls run. Until Enter has changed TLSNextProto, no second call looks
// at it.
func (d *Door) serve(run func() error) error {
	d.mu.Lock()
	if d.open {
		d.mu.Unlock()
		return run()
	}
	unlock := sync.OnceFunc(d.mu.Unlock)
	defer unlock()
	d.first.Store(&unlock)
	defer d.first.Store(nil)
	return run()
}

// Enter must be called by the BaseContext of the http.Server with its argument.
// It returns the listener to show to others, and false if there is none, and
// the context will not be used.
func (d *Door) Enter(l net.Listener) (plain net.Listener, real bool) {
	unlock := d.first.Swap(nil)
	if unlock == nil {
		return l, true
	}
	defer (*unlock)()
	d.open = true
	protos := d.srv.TLSNextProto
	if next := protos[withoutTLS]; d.own && next != nil && protos[overTLS] != nil {
		protos = maps.Clone(protos)
		protos[overTLS] = func(hs *http.Server, tc *tls.Conn, h http.Handler) { serveHTTP2(hs, tc, h, next) }
		d.srv.TLSNextProto = protos
	}
	return l, true
}

// prefaceTimeout is net/http's.
const prefaceTimeout = 10 * time.Second

// serveHTTP2 reads the preface, and has next serve the connection.
func serveHTTP2(hs *http.Server, tc *tls.Conn, h http.Handler, next func(*http.Server, *tls.Conn, http.Handler)) {
	c := &TLSConn{Conn: tc}
	c.speakHTTP2()
	c.SetReadDeadline(time.Now().Add(prefaceTimeout))
	var preface [PrefaceLen]byte
	if _, err := io.ReadFull(c, preface[:]); err != nil {
		return
	}
	if string(preface[:]) != clientPreface {
		logf(hs, "http2: server: error reading preface from client %v: bogus greeting %q", c.RemoteAddr(), preface)
		return
	}
	c.SetReadDeadline(time.Time{})
	next(hs, tls.Client(handOver{conn: c}, nil), h)
}

const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

func logf(hs *http.Server, format string, args ...any) {
	if hs.ErrorLog != nil {
		hs.ErrorLog.Printf(format, args...)
	} else {
		log.Printf(format, args...)
	}
}

// handOver is how net/http takes a connection that is not a *tls.Conn where one
// is asked for. Nothing else is ever called.
type handOver struct {
	net.Conn
	conn net.Conn
}

// UnencryptedNetConn is what net/http looks for.
func (h handOver) UnencryptedNetConn() net.Conn { return h.conn }
