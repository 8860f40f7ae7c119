package track

import (
	"errors"
	"io"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/memnet"
)

// held runs f in virtual time, with a connection whose client neither writes
// nor reads, and whose buffer is full.
func held(t *testing.T, f func(t *testing.T, c *Conn)) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pipe()
		c := NewSet(nobody{}).Add(b)
		defer a.Close()
		defer c.Close()
		time.Sleep(time.Second) // the clock of the Set is not at zero
		b.Write(make([]byte, 64<<10))
		f(t, c)
	})
}

// stops has a Read and a Write wait until their deadlines stop them, and
// compares when, counted from now.
func stops(t *testing.T, c *Conn, read, write time.Duration) {
	t.Helper()
	begun := time.Now()
	wait := func(f func([]byte) (int, error)) <-chan time.Duration {
		done := make(chan time.Duration, 1)
		go func() {
			if _, err := f(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%v, want a timeout", err)
			}
			done <- time.Since(begun)
		}()
		return done
	}
	r, w := wait(c.Read), wait(c.Write)
	if r, w := <-r, <-w; r != read || w != write {
		t.Errorf("Read stopped after %v, Write after %v; want %v, %v", r, w, read, write)
	}
}

const s = time.Second

func TestHoldStopsBothClocks(t *testing.T) {
	held(t, func(t *testing.T, c *Conn) {
		c.SetReadDeadline(time.Now().Add(10 * s))
		c.SetWriteDeadline(time.Now().Add(20 * s))
		time.Sleep(4 * s)
		c.HoldDeadlines()
		time.Sleep(100 * s)
		c.ReleaseDeadlines()
		stops(t, c, 6*s, 16*s)
	})
}

// TestHoldDuringReadAndWrite: who waits already is held, too.
func TestHoldDuringReadAndWrite(t *testing.T) {
	held(t, func(t *testing.T, c *Conn) {
		c.SetDeadline(time.Now().Add(10 * s))
		go func() {
			time.Sleep(9 * s)
			c.HoldDeadlines()
			time.Sleep(100 * s)
			c.ReleaseDeadlines()
		}()
		stops(t, c, 110*s, 110*s)
	})
}

func TestHoldsNest(t *testing.T) {
	held(t, func(t *testing.T, c *Conn) {
		c.SetDeadline(time.Now().Add(10 * s))
		c.HoldDeadlines()
		time.Sleep(s)
		c.HoldDeadlines()
		time.Sleep(s)
		c.ReleaseDeadlines()
		time.Sleep(50 * s)
		c.ReleaseDeadlines()
		time.Sleep(3 * s)
		c.HoldDeadlines() // once more
		time.Sleep(50 * s)
		c.ReleaseDeadlines()
		stops(t, c, 7*s, 7*s)
	})
}

// TestSetWhileHeld: what a handler sets stays.
func TestSetWhileHeld(t *testing.T) {
	held(t, func(t *testing.T, c *Conn) {
		c.SetDeadline(time.Now().Add(10 * s))
		c.HoldDeadlines()
		c.SetReadDeadline(time.Now().Add(30 * s))
		c.SetWriteDeadline(time.Now().Add(40 * s))
		time.Sleep(20 * s)
		c.ReleaseDeadlines()
		stops(t, c, 10*s, 20*s)
	})
	t.Run("passed meanwhile", func(t *testing.T) {
		held(t, func(t *testing.T, c *Conn) {
			c.HoldDeadlines()
			c.SetDeadline(time.Now().Add(10 * s))
			go func() {
				time.Sleep(20 * s)
				c.ReleaseDeadlines()
			}()
			stops(t, c, 20*s, 20*s)
		})
	})
	t.Run("cleared", func(t *testing.T) {
		held(t, func(t *testing.T, c *Conn) {
			c.SetDeadline(time.Now().Add(10 * s))
			c.HoldDeadlines()
			c.SetDeadline(time.Time{})
			c.ReleaseDeadlines()
			time.Sleep(20 * s)
			go func() {
				time.Sleep(7 * s)
				c.SetDeadline(longAgo)
			}()
			stops(t, c, 7*s, 7*s)
		})
	})
}

// TestPastWhileHeld: a deadline in the past is no clock that could stand still,
// but how net/http has a Read return.
func TestPastWhileHeld(t *testing.T) {
	held(t, func(t *testing.T, c *Conn) {
		c.SetDeadline(time.Now().Add(10 * s))
		c.HoldDeadlines()
		go func() {
			time.Sleep(30 * s)
			c.SetDeadline(longAgo)
		}()
		stops(t, c, 30*s, 30*s)
		stops(t, c, 0, 0)
		c.SetDeadline(time.Time{})
		go func() {
			time.Sleep(5 * s)
			c.SetDeadline(longAgo)
		}()
		stops(t, c, 5*s, 5*s)
		c.ReleaseDeadlines()
		stops(t, c, 0, 0)
		c.SetDeadline(time.Now().Add(10 * s))
		stops(t, c, 10*s, 10*s)
	})
	t.Run("set before, cleared meanwhile", func(t *testing.T) {
		held(t, func(t *testing.T, c *Conn) {
			c.SetDeadline(longAgo)
			c.HoldDeadlines()
			stops(t, c, 0, 0)
			c.SetDeadline(time.Time{})
			c.ReleaseDeadlines()
			go func() {
				time.Sleep(5 * s)
				c.SetDeadline(longAgo)
			}()
			stops(t, c, 5*s, 5*s)
		})
	})
}

// TestHoldOnASocket: there a Read sets the deadline itself.
func TestHoldOnASocket(t *testing.T) {
	client, c := pair(t, "tcp")
	sd := sides{t: t, client: client, server: c}
	at := time.Now().Add(50 * soon)
	sd.set(at)
	sd.readLater("h", nil, func() {
		c.HoldDeadlines()
		if time.Now().After(at) {
			t.Skip("too slow a machine")
		}
		passes(at)
		sd.send("h")
	})
	sd.readLater("e", nil, func() { sd.send("e") })
	c.ReleaseDeadlines()
	sd.readLater("l", nil, func() { sd.send("l") }) // some 50 soon are left
	sd.read("", os.ErrDeadlineExceeded)
}

// TestWatchHangUp: a client that leaves is seen, one that sends is not taken
// for it, and what it sent is read afterwards.
func TestWatchHangUp(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		client, c := pair(t, network)
		c.SetReadDeadline(time.Now().Add(soon))
		c.HoldDeadlines()
		hungUp, stop := c.WatchHangUp()
		if hungUp == nil {
			t.Skip("this system does not tell")
		}
		io.WriteString(client, "hello")
		passes(time.Now().Add(soon))
		select {
		case <-hungUp:
			t.Errorf("%s: a client that sends has hung up", network)
		default:
		}
		stop()
		c.ReleaseDeadlines()
		c.SetReadDeadline(time.Time{})
		sides{t: t, client: client, server: c}.read("hello", nil)

		c.HoldDeadlines()
		hungUp, stop = c.WatchHangUp()
		if runtime.GOOS == "linux" {
			io.WriteString(client, "more") // an end behind bytes
		}
		client.Close()
		<-hungUp
		stop()
		c.ReleaseDeadlines()
	}
}

// TestWatchHangUpBesideARead: net/http watches then.
func TestWatchHangUpBesideARead(t *testing.T) {
	client, c := pair(t, "tcp")
	sides{t: t, client: client, server: c}.readLater("x", nil, func() {
		hungUp, stop := c.WatchHangUp()
		if hungUp != nil {
			t.Error("two read at once")
		}
		stop()
		io.WriteString(client, "x")
	})
}

// TestEndedWatchStaysEnded: a deadline that somebody sets just then does not
// have it wait again.
func TestEndedWatchStaysEnded(t *testing.T) {
	client, c := pair(t, "tcp")
	below := c.NetConn() // somebody may read this one
	c.HoldDeadlines()
	hungUp, stop := c.WatchHangUp()
	if hungUp == nil {
		t.Skip("this system does not tell")
	}
	c.deadlines.end(c) // as stop begins
	c.SetReadDeadline(time.Now().Add(later))
	if err := c.raw.Read(func(uintptr) bool { return false }); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want a timeout", err)
	}
	stop()
	io.WriteString(client, "x")
	if _, err := below.Read(make([]byte, 1)); err != nil {
		t.Errorf("after the watch: %v", err)
	}
	c.ReleaseDeadlines()
}

// TestWatchHangUpStops: at once, whatever deadlines others set meanwhile.
func TestWatchHangUpStops(t *testing.T) {
	client, c := pair(t, "tcp")
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			default:
				c.SetReadDeadline(time.Now().Add(time.Duration(i%2+1) * later))
				c.SetWriteDeadline(time.Now().Add(later))
			}
		}
	}()
	for range 300 {
		c.HoldDeadlines()
		_, stop := c.WatchHangUp()
		stop() // ends, or the test does not
		c.ReleaseDeadlines()
	}
	close(quit)
	<-done
	sides{t: t, client: client, server: c}.readLater("hello", nil, func() { io.WriteString(client, "hello") })
}
