package track

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/memnet"
)

// idleTLS returns a connection of an http.Server between two requests.
func idleTLS(t *testing.T, v visit) *visitor {
	t.Helper()
	vis := v.host(t).visit()
	vis.ask(aGet)
	vis.answered()
	vis.consumed()
	return vis
}

// fill writes to c below TLS until its buffer is full, and the client's.
func fill(t *testing.T, client net.Conn, c *Conn) {
	t.Helper()
	// Small ones, which do not grow.
	client.(*net.TCPConn).SetReadBuffer(16 << 10)
	c.Conn.(*net.TCPConn).SetWriteBuffer(16 << 10)
	for full := 0; full < 3; full++ {
		c.SetWriteDeadline(time.Now().Add(soon))
		n, err := c.Write(make([]byte, 1<<20))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if n > 0 {
			full = -1
		}
	}
	c.SetWriteDeadline(time.Time{})
}

// TestRetireTellsTLS: a client is told that no more will come, or some take the
// end for a truncation. One that is cut off is not told so.
func TestRetireTellsTLS(t *testing.T) {
	for _, v := range visits(t) {
		if !v.tls {
			continue
		}
		for _, cut := range []bool{false, true} {
			vis := idleTLS(t, v)
			vis.sent.got = nil
			if cut {
				vis.server.Cut()
			} else if !vis.server.Retire() {
				t.Fatalf("%s: not retired", v.name)
			}
			if _, err := vis.reader.ReadByte(); err != io.EOF {
				t.Errorf("%s: the client reads %v, want EOF", v.name, err)
			}
			// TLS 1.3 hides that the record is an alert.
			got := vis.sent.got
			told := len(got) > 5 && got[0] == 21 || len(got) == 5+2+17 && got[0] == recordApplicationData
			if told == cut || cut && len(got) > 0 {
				t.Errorf("%s, cut=%v: the client got %x", v.name, cut, got)
			}
			vis.leave()
		}
	}
}

// TestRetireDoesNotWait: a client that reads nothing delays nobody, whether a
// Write of crypto/tls waits for it or none does.
func TestRetireDoesNotWait(t *testing.T) {
	for _, writes := range []bool{false, true} {
		vis := idleTLS(t, visits(t)[2])
		fill(t, vis.sent.Conn, vis.server)
		done := make(chan struct{})
		if writes {
			go func() {
				defer close(done)
				vis.server.tls.Load().Write(make([]byte, 1<<20))
			}()
		} else {
			close(done)
		}
		begun := time.Now()
		if !vis.server.Retire() {
			t.Fatal("not retired")
		}
		<-done // ended by the close
		if d := time.Since(begun); d > 4*time.Second {
			t.Errorf("writes=%v: took %v; what crypto/tls waits for is 5 s", writes, d)
		}
		if !vis.server.State().Closed() {
			t.Error("Retire returned, and the connection is not closed")
		}
		vis.leave()
	}
}

// TestRetireHTTP2: its last response is written after net/http has said that the
// connection is idle.
func TestRetireHTTP2(t *testing.T) {
	client, c := pair(t, "tcp")
	fill(t, client, c)
	c.change(http2Found)
	c.Report(c, http.StateActive)
	c.Report(c, http.StateIdle)
	sides{t: t, client: client, server: c}.readLater("", net.ErrClosed, func() {
		if !c.State().Quiet() {
			t.Error("not quiet")
		}
		if c.Retire() {
			t.Error("retired, and the client has not read what was written")
		}
		go io.Copy(io.Discard, client)
		eventually(t, "room for the rest", c.writable)
		if !c.Retire() {
			t.Error("not retired, and nothing waits to be written")
		}
	})
}

// TestLingerLetsTheClientRead: a response reaches a client that has sent more
// than was read, though the kernel answers that with a reset.
func TestLingerLetsTheClientRead(t *testing.T) {
	client, c := pair(t, "tcp")
	c.set.BeginStop()
	io.WriteString(client, "GET / HTTP/1.1\r\n\r\n")
	sides{t: t, client: client, server: c}.read("GET /", nil)
	c.Report(c, http.StateActive)
	io.WriteString(c, "HTTP/1.1 200 OK\r\n")
	c.Close()
	io.WriteString(client, "more that nobody reads")
	if line, err := bufio.NewReader(client).ReadString('\n'); err != nil {
		t.Errorf("the client read %q, %v", line, err)
	}
	if open, _ := c.set.Open(); open != 1 {
		t.Error("a connection that lingers is not counted")
	}
	sides{t: t, client: client, server: c}.read("", net.ErrClosed)
	if err := c.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("SetDeadline of a connection that lingers: %v", err)
	}
	client.Close()
	eventually(t, "the end of the linger", func() bool { open, _ := c.set.Open(); return open == 0 })
}

// TestLingerIsBounded: nobody who sets a deadline late, as a handler's leftover
// does, or reads still, takes away its bound.
func TestLingerIsBounded(t *testing.T) {
	client, c := pair(t, "tcp")
	c.set.BeginStop()
	c.Report(c, http.StateActive)
	sides{t: t, client: client, server: c}.readLater("", os.ErrDeadlineExceeded, func() {
		c.Close()
		if err := c.SetReadDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("SetReadDeadline after Close: %v", err)
		}
	})
	eventually(t, "the end of the linger", func() bool {
		// One that came just before the Close.
		c.deadlines.read.Store(int64(c.set.moment(time.Now().Add(later))))
		c.deadlines.apply(c)
		open, _ := c.set.Open()
		return open == 0
	})
}

// TestLingers: only a connection that may have been answered just now, whose
// client is still there, and only in a stop.
func TestLingers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		stop    bool
		does    func(client net.Conn, c *Conn)
		lingers bool
	}{
		{"active, in a stop", true, func(_ net.Conn, c *Conn) { c.Report(c, http.StateActive) }, true},
		{"active", false, func(_ net.Conn, c *Conn) { c.Report(c, http.StateActive) }, false},
		{"new", true, func(net.Conn, *Conn) {}, false},
		{"idle", true, func(_ net.Conn, c *Conn) { c.Report(c, http.StateActive); c.Report(c, http.StateIdle) }, false},
		{"hijacked", true, func(_ net.Conn, c *Conn) { c.Report(c, http.StateActive); c.Report(c, http.StateHijacked) }, false},
		{"its client has left", true, func(client net.Conn, c *Conn) {
			c.Report(c, http.StateActive)
			client.Close()
			c.Read(make([]byte, 1))
		}, false},
	} {
		client, c := pair(t, "tcp")
		if tt.stop {
			c.set.BeginStop()
		}
		tt.does(client, c)
		c.Close()
		if open, _ := c.set.Open(); (open == 1) != tt.lingers {
			t.Errorf("%s: %d open after Close", tt.name, open)
		}
		client.Close()
		eventually(t, "the end", func() bool { open, _ := c.set.Open(); return open == 0 })
	}
}

// TestRetireOpaque: a TLS connection that somebody else made is closed in the
// background, because its Close has to write first.
func TestRetireOpaque(t *testing.T) {
	a, b := connect(t, "tcp")
	server := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{testCert(t)}})
	client := tls.Client(a, &tls.Config{InsecureSkipVerify: true})
	go server.Handshake()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	set := NewSet(nobody{})
	c := set.addOpaque(server)
	c.Report(server, http.StateNew)
	if c.State().Quiet() || c.Retire() {
		t.Error("quiet, and nothing is known")
	}
	c.Report(server, http.StateActive)
	if c.State().Quiet() {
		t.Error("quiet in a request")
	}
	c.Report(server, http.StateIdle)
	if !c.Retire() {
		t.Error("not retired when idle")
	}
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client reads %v, want EOF", err)
	}
	client.Close()
	eventually(t, "the end", func() bool { open, _ := set.Open(); return open == 0 })
}

// TestRetiredReadsNothing: what comes once it has been decided that a connection
// is closed does not reach a handler, whose answer could not be sent.
func TestRetiredReadsNothing(t *testing.T) {
	client, c := pair(t, "tcp")
	s := sides{t: t, client: client, server: c}
	s.readLater("", net.ErrClosed, func() {
		if _, now := c.change(retire); now&retired == 0 {
			t.Error("not retired")
		}
		s.send("hello")
	})
	s.read("", net.ErrClosed)

	a, b := memnet.Pipe()
	defer a.Close()
	plain := NewSet(nobody{}).Add(b)
	defer plain.Close()
	plain.state.Store(uint32(waiting | retired))
	send(t, a, "hello")
	sides{t: t, client: a, server: plain}.read("", net.ErrClosed)
}

func TestCutEndsLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, when := range []string{"never", "as it begins", "as it waits"} {
			cut := when != "never"
			a, b := memnet.Pipe()
			set := NewSet(nobody{})
			c := set.Add(b)
			set.BeginStop()
			c.Report(c, http.StateActive)
			c.Close()
			if _, err := a.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the client reads %v, want EOF", err)
			}
			if _, err := a.Write([]byte("more")); err != nil {
				t.Errorf("the client cannot write to a connection that lingers: %v", err)
			}
			if n, _ := set.Open(); n != 1 {
				t.Error("a connection that lingers is not counted")
			}
			if when == "as it waits" {
				synctest.Wait()
			}
			began := time.Now()
			if cut {
				c.Cut()
			}
			// Ends when the server's side is closed for reading, too.
			for err := error(nil); err == nil; {
				time.Sleep(time.Millisecond)
				_, err = a.Write([]byte("more"))
			}
			if d := time.Since(began); cut && d > time.Millisecond || !cut && (d < lingerTimeout || d > lingerTimeout+time.Millisecond) {
				t.Errorf("cut %s: lingered for %v", when, d)
			}
			a.Close()
		}
	})
}
