//go:build go1.28

package goaway

import "net"

// What this release of Go does is not known: the door is shut.

// WrapsHTTP1 reports whether net/http has a TLSConn for HTTP/1 over TLS, too.
const WrapsHTTP1 = false

type doorState struct{}

// Serve is [http.Server.Serve].
func (d *Door) Serve(l net.Listener) error { return d.srv.Serve(l) }

// ServeTLS is [http.Server.ServeTLS].
func (d *Door) ServeTLS(l net.Listener, certFile, keyFile string) error {
	return d.srv.ServeTLS(l, certFile, keyFile)
}

// Enter must be called by the BaseContext of the http.Server with its argument.
// It returns the listener to show to others, and false if there is none, and
// the context will not be used.
func (d *Door) Enter(l net.Listener) (plain net.Listener, real bool) { return l, true }
