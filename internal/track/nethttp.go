package track

import (
	"crypto/tls"
	"net"
	"net/http"

	"github.com/seed-235859eb/usher/internal/goaway"
)

// What this package takes for granted of the inside of net/http's server, each
// with a test of the same name:
//
//   - BackgroundRead: while a handler runs, and the body has been read, a
//     goroutine reads one byte, to learn whether the client leaves. No other
//     Read of an active HTTP/1 connection is into one byte.
//   - IdleDeadlines: when a connection has become idle, the read deadline is
//     set once before net/http waits for the next request, and once more when
//     four bytes of it have come.
//   - WholeBuffer: between requests, net/http reads into all the room that its
//     buffer has, and this buffer has wholeBuffer bytes. Only while it looks for
//     the preface of HTTP/2 does it read into less.
//   - StateOrder: New comes before the first Read; Active when a header has
//     been read, before its handler runs; Idle when the response has been written,
//     before the next Read. The end of a response of HTTP/2 is written just
//     after that.
//   - HijackedBeforeRead: Hijacked comes before the handler that took the
//     connection over can read from it.

const wholeBuffer = 4096

// isBackgroundRead reports whether a Read into size bytes is the one by which
// net/http learns that a client leaves.
func isBackgroundRead(st State, size int) bool {
	return size == 1 && st.Reported() == http.StateActive
}

// Report notes what the ConnState callback of net/http said of nc, which is c
// or a TLS connection on top of it.
func (c *Conn) Report(nc net.Conn, state http.ConnState) {
	nc, h := goaway.Plain(nc)
	switch state {
	case http.StateNew:
		if tc, ok := nc.(*tls.Conn); ok && tc != c.Conn {
			c.tls.Store(tc)
		}
	case http.StateActive:
		if c.State().Reported() == http.StateNew && negotiatedHTTP2(nc) {
			if h != nil {
				c.follow(h)
			}
			c.change(http2Found)
			c.set.detach(c)
		}
		c.noteClient((*client).requestBegan)
		c.change(nowActive)
		if c.set.wanted(stopping) {
			c.change(stopFound)
		}
	case http.StateIdle:
		c.noteClient((*client).requestEnded)
		if c.set.wanted(timed) {
			c.since.Store(int64(c.set.Now()))
		}
		if _, now := c.change(nowIdle); now.HTTP2() && now.Quiet() {
			// The reader of an HTTP/2 connection waits all the time.
			c.set.notice(c, Quiet)
		}
	case http.StateHijacked:
		c.change(nowHijacked)
		if h := c.http2.Swap(nil); h != nil {
			h.Close() // its frames are its handler's
		}
		if h := c.hook.Load(); h != nil {
			h.Ended(true)
		}
		c.set.detach(c)
	}
}

// noteClient calls f, unless somebody reads now, which net/http does not.
func (c *Conn) noteClient(f func(*client)) {
	if c.readMu.TryLock() {
		f(&c.client)
		c.readMu.Unlock()
	}
}

func negotiatedHTTP2(nc net.Conn) bool {
	tc, ok := nc.(interface{ ConnectionState() tls.ConnectionState })
	return ok && tc.ConnectionState().NegotiatedProtocol == "h2"
}
