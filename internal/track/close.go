package track

import (
	"io"
	"net"
	"net/http"
	"time"
)

// Retire closes c if it is quiet and nothing of it waits in the kernel, and
// reports whether it did. A TLS client is told, by close_notify, if it reads.
//
// A request that arrives between that look and the close is lost. The window
// is as long as a system call and the flight of the FIN, and no server can
// close it: only an answer ends an HTTP/1 connection without a race.
func (c *Conn) Retire() bool {
	st := c.State()
	if !st.Quiet() || c.Unread() {
		return false
	}
	if st.HTTP2() {
		if c.raw != nil && !c.writable() {
			return false // the end of a response may wait to be written; see StateOrder
		}
		if c.midway(st) {
			return false
		}
	}
	if before, now := c.change(retire); before&retired != 0 || now&retired == 0 {
		return false
	}
	if tc := c.tls.Load(); tc != nil && c.writable() {
		tc.Close() // closes c
	}
	c.CloseSoon()
	return true
}

// midway reports whether an HTTP/2 client has sent part of a header: its
// connection is quiet until net/http has all of it.
func (c *Conn) midway(st State) bool {
	if h := c.http2.Load(); h != nil {
		return h.Midway()
	}
	return st&ahead != 0 // its frames are not followed
}

// CloseSoon closes c without waiting: Close of a connection that is not the
// kernel's may block, as that of a TLS connection does that has to say so
// first to a client that does not read.
func (c *Conn) CloseSoon() {
	if c.raw != nil {
		c.Close()
	} else {
		go c.Close()
	}
}

// Cut closes c whatever it does. In the middle of a response the client gets a
// reset: to HTTP/1.0 an end in order says that the response is whole.
func (c *Conn) Cut() {
	before, _ := c.change(cutOff)
	if before.Closed() {
		c.deadlines.end(c) // it lingers
		return
	}
	if tc, ok := c.Conn.(*net.TCPConn); ok && before.Reported() == http.StateActive && !before.HTTP2() {
		tc.SetLinger(0)
	}
	c.CloseSoon()
}

// lingerTimeout bounds how long a connection that was closed during a stop is
// kept for the client to read its last response.
const lingerTimeout = 500 * time.Millisecond

// Close closes the connection. Only the first call does; others return an
// error that wraps [net.ErrClosed].
//
// After a stop has begun, Close of a connection that has just been answered
// closes the sending side at once and the rest when the client has closed its
// own, or after half a second: if bytes that nobody read were in the receive
// buffer, the kernel would send a reset, and the client could lose the end of
// the response. Close does not wait for that.
func (c *Conn) Close() error {
	before, _ := c.change(close_)
	if before.Closed() {
		return c.opError("close", net.ErrClosed)
	}
	if h := c.hook.Load(); h != nil {
		h.Ended(false)
	}
	if before.lingers() && c.set.Stopping() {
		if err := c.CloseWrite(); err == nil {
			go c.linger()
			return nil
		}
	}
	return c.closeNow()
}

// linger reads what the client still sends until it closes. It ends with the
// connection, which its Set counts as open until then.
func (c *Conn) linger() {
	d := &c.deadlines
	d.mu.Lock() // after whoever is about to set another
	c.Conn.SetReadDeadline(time.Now().Add(lingerTimeout))
	d.mu.Unlock()
	if c.State()&cut == 0 {
		io.Copy(io.Discard, struct{ io.Reader }{c.Conn})
	}
	c.closeNow()
}

// closeNow closes the descriptor and counts c out.
func (c *Conn) closeNow() error {
	err := c.Conn.Close()
	c.set.remove(c)
	return err
}
