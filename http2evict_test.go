package usher

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/maxconns"
)

// TestHTTP2MidHeaderIsNotEvicted: the cap on connections does not close an
// HTTP/2 connection whose client has sent part of a header, nor one that a
// request came over a moment ago (#12 C4).
func TestHTTP2MidHeaderIsNotEvicted(t *testing.T) {
	const half = "\x82\x86\x84\x41\x0a" // half of a header of 15 bytes
	for _, tt := range []struct {
		name string
		send func(c *rawConn)
		rest func(c *rawConn)
	}{
		{"half a frame", func(c *rawConn) {
			c.send("\x00\x00\x0f\x01\x05\x00\x00\x00\x03" + half)
		}, func(c *rawConn) { c.send("usher.test") }},
		{"half a header in a frame of its own", func(c *rawConn) {
			c.sendFrame(frameHeaders, flagEndStream, 3, half)
		}, func(c *rawConn) { c.sendFrame(9, flagEndHeaders, 3, "usher.test") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := startVirtualMode(t, h2c, Options{Listener: ListenerOptions{MaxConns: 1}}, ok)
				c := v.dial()
				c.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
				c.sendFrame(frameSettings, 0, 0, "")
				c.getStream(1)
				c.readUntil("response", endOf(1))
				synctest.Wait()
				time.Sleep(time.Minute) // idle
				tt.send(c)
				synctest.Wait()
				began := time.Now()
				other := v.dial()
				time.Sleep(10 * maxconns.EvictAfter)
				tt.rest(c)
				c.readUntil("response", endOf(3))
				c.Close()
				other.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
				other.sendFrame(frameSettings, 0, 0, "")
				other.getStream(1)
				other.readUntil("response", endOf(1))
				if d := time.Since(began); d > 11*maxconns.EvictAfter {
					t.Errorf("the newcomer waited %v", d)
				}
				other.Close()
				synctest.Wait()
				<-v.shutdown()
			})
		})
	}
}

// TestMidHeadersDoNotKeepOthers: many HTTP/2 clients that have each sent part of
// a header, long ago, keep no newcomer from the place of an idle connection.
func TestMidHeadersDoNotKeepOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const conns = 200
		v := startVirtualMode(t, h2c, Options{Listener: ListenerOptions{MaxConns: conns}}, ok)
		http2 := func() *rawConn {
			c := v.dial()
			c.SetDeadline(time.Now().Add(time.Hour))
			c.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
			c.sendFrame(frameSettings, 0, 0, "")
			c.getStream(1)
			c.readUntil("response", endOf(1))
			return c
		}
		for range conns - 1 {
			c := http2()
			defer c.Close()
			c.send("\x00\x00\x0f\x01\x05\x00\x00\x00\x03") // of a frame
		}
		synctest.Wait()
		time.Sleep(time.Second)
		idle := http2()
		defer idle.Close()
		time.Sleep(2 * maxconns.EvictAfter)
		began := time.Now()
		newcomer := http2()
		defer newcomer.Close()
		if d := time.Since(began); d > 0 {
			t.Errorf("the newcomer waited %v", d)
		}
		v.Close()
		<-v.served
	})
}
