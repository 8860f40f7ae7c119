package goaway

import (
	"crypto/tls"
	"net"
)

// A TLSConn stands between net/http's HTTP/2 and crypto/tls. It is a *tls.Conn
// in all but its type.
type TLSConn struct {
	*tls.Conn
	http2 *Conn // nil if it speaks something else
}

// Read reads from the connection.
func (c *TLSConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.http2 != nil && n > 0 {
		c.http2.Came(p[:n])
	}
	return n, err
}

// Write writes to the connection.
func (c *TLSConn) Write(p []byte) (int, error) {
	if c.http2 != nil {
		return c.http2.Write(p)
	}
	return c.Conn.Write(p)
}

// speakHTTP2 has it follow the frames, from the client's preface on.
func (c *TLSConn) speakHTTP2() { c.http2 = New(c.Conn, 0) }

// Plain returns the connection that net/http has without this package in place
// of nc, and the Conn that follows nc's frames, if nc is a TLSConn that has
// one.
func Plain(nc net.Conn) (net.Conn, *Conn) {
	if c, ok := nc.(*TLSConn); ok {
		return c.Conn, c.http2
	}
	return nc, nil
}
