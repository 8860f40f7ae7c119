//go:build go1.27 && !go1.28

package goaway

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
)

// From Go 1.27 on, net/http speaks HTTP/2 over any connection that has the
// methods ConnectionState and HandshakeContext. So the listener that Serve gets
// makes a TLSConn of each TLS connection. ServeTLS makes a listener itself, with
// the certificates and protocols that it finds: it is called once to make it,
// and then Serve is called with that one.

// WrapsHTTP1 reports whether net/http has a TLSConn for HTTP/1 over TLS, too.
const WrapsHTTP1 = true

type doorState struct{}

// Serve is [http.Server.Serve].
func (d *Door) Serve(l net.Listener) error {
	if d.own {
		l = listener{l}
	}
	return d.srv.Serve(l)
}

// ServeTLS is [http.Server.ServeTLS].
func (d *Door) ServeTLS(l net.Listener, certFile, keyFile string) error {
	if !d.own {
		return d.srv.ServeTLS(l, certFile, keyFile)
	}
	p := &probe{Listener: l}
	if err := d.srv.ServeTLS(p, certFile, keyFile); !errors.Is(err, errProbed) {
		return err
	}
	p.over.Store(true)
	return d.srv.Serve(listener{p.above})
}

// Enter must be called by the BaseContext of the http.Server with its argument.
// It returns the listener to show to others, and false if there is none, and
// the context will not be used.
func (d *Door) Enter(l net.Listener) (plain net.Listener, real bool) {
	if addr, ok := l.Addr().(probeAddr); ok {
		addr.p.above = l
		return nil, false
	}
	if w, ok := l.(listener); ok {
		return w.Listener, true
	}
	return l, true
}

// A probe is a listener that ends the call of ServeTLS that it was given to, and
// afterwards is the one that it wraps.
type probe struct {
	net.Listener
	above net.Listener // what ServeTLS made of it
	over  atomic.Bool
}

var errProbed = errors.New("goaway: the listener has been made")

// Accept ends ServeTLS.
func (p *probe) Accept() (net.Conn, error) {
	if !p.over.Load() {
		return nil, errProbed
	}
	return p.Listener.Accept()
}

// Close closes nothing that is still to be used.
func (p *probe) Close() error {
	if !p.over.Load() {
		return nil
	}
	return p.Listener.Close()
}

// Addr is how Enter knows what has been made of p.
func (p *probe) Addr() net.Addr {
	if !p.over.Load() {
		return probeAddr{p}
	}
	return p.Listener.Addr()
}

// Unwrap returns the listener that p wraps.
func (p *probe) Unwrap() net.Listener { return p.Listener }

type probeAddr struct{ p *probe }

func (probeAddr) Network() string { return "" }
func (probeAddr) String() string  { return "" }

// listener has net/http get a TLSConn for each TLS connection.
type listener struct{ net.Listener }

// Accept waits for the next connection.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tc, ok := c.(*tls.Conn); ok {
		c = &TLSConn{Conn: tc}
	}
	return c, err
}

// HandshakeContext is called by net/http before it reads or writes.
func (c *TLSConn) HandshakeContext(ctx context.Context) error {
	if err := c.Conn.HandshakeContext(ctx); err != nil {
		return err
	}
	switch c.ConnectionState().NegotiatedProtocol {
	case "h2":
		c.speakHTTP2()
	case "", "http/1.1", "http/1.0":
	default:
		// net/http closes a *tls.Conn with a protocol that nobody serves, and
		// would speak HTTP/1 with another connection.
		c.Conn.Close()
	}
	return nil
}
