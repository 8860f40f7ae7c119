package track

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// soon is a deadline that passes during a test, and later one that does not.
const (
	soon  = 20 * time.Millisecond
	later = time.Hour
)

var longAgo = time.Unix(1, 0)

// sides are the two ends of a connection, of which the server's may be
// followed, and may be a TLS connection.
type sides struct {
	t              *testing.T
	client, server net.Conn
	tls            bool
}

func (s sides) send(b string) {
	s.t.Helper()
	if _, err := io.WriteString(s.client, b); err != nil {
		s.t.Fatal(err)
	}
}

// below is the connection of package net.
func (s sides) below() net.Conn {
	c := s.server
	for {
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = w.NetConn()
	}
}

// read has the server read as many bytes as want has, or fail with wantErr.
func (s sides) read(want string, wantErr error) {
	s.t.Helper()
	got := make([]byte, max(len(want), 1))
	n, err := io.ReadFull(s.server, got)
	if !errors.Is(err, wantErr) || string(got[:n]) != want {
		s.t.Errorf("read %q, %v; want %q, %v", got[:n], err, want, wantErr)
	}
	if wantErr != nil && errors.Is(wantErr, os.ErrDeadlineExceeded) {
		if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
			s.t.Errorf("%#v is no timeout of package net", err)
		}
	}
}

// readLater has the server read while f runs.
func (s sides) readLater(want string, wantErr error, f func()) {
	s.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.read(want, wantErr)
	}()
	s.waits()
	f()
	<-done
}

// set sets a read deadline.
func (s sides) set(t time.Time) {
	s.t.Helper()
	if err := s.server.SetReadDeadline(t); err != nil {
		s.t.Error(err)
	}
}

// extend moves the deadline of a Read that waits to at, and has it go on when
// the first one has passed. A machine that stalls for so long may try again.
func (s sides) extend(at time.Time) {
	s.t.Helper()
	for first := 10 * soon; ; first *= 4 {
		before := time.Now().Add(first)
		s.set(before)
		done := make(chan error, 1)
		go func() {
			_, err := s.server.Read(make([]byte, 1))
			done <- err
		}()
		s.waits()
		s.set(at)
		inTime := time.Now().Before(before)
		passes(before)
		s.send("x")
		err := <-done
		if err == nil {
			return
		}
		if inTime || first > 10*time.Second {
			s.t.Fatalf("extended, and the Read says %v", err)
		}
		s.read("x", nil)
	}
}

// waits returns when a Read of the server waits.
func (s sides) waits() {
	s.t.Helper()
	if c := Of(s.server); c != nil {
		eventually(s.t, "the Read waits", func() bool { return c.State().Waits() || c.deadlines.passed(c) })
	} else {
		time.Sleep(soon) // a bare connection does not tell
	}
}

// passes waits until t has passed, for the runtime's poller as well.
func passes(t time.Time) { time.Sleep(time.Until(t) + soon) }

// deadlineBehaviours are what a connection of package net does.
var deadlineBehaviours = []struct {
	name  string
	plain bool // crypto/tls gives a connection up after a timeout of Write
	do    func(s sides)
}{
	{"past", false, func(s sides) {
		s.send("hello")
		s.set(longAgo)
		s.read("", os.ErrDeadlineExceeded)
		s.read("", os.ErrDeadlineExceeded)
		s.set(time.Time{})
		s.read("hello", nil)
	}},
	{"now", false, func(s sides) {
		s.set(time.Now())
		s.read("", os.ErrDeadlineExceeded)
	}},
	{"passes during a Read", false, func(s sides) {
		s.set(time.Now().Add(soon))
		s.read("", os.ErrDeadlineExceeded)
		s.send("hello")
		s.read("", os.ErrDeadlineExceeded)
		s.set(time.Now().Add(later))
		s.read("hello", nil)
	}},
	{"passes between Reads, with something to read", false, func(s sides) {
		s.send("hello")
		at := time.Now().Add(soon)
		s.set(at)
		passes(at)
		s.read("", os.ErrDeadlineExceeded)
		s.set(time.Time{})
		s.read("hello", nil)
	}},
	{"passed for the poller, then cleared", false, func(s sides) {
		var at time.Time
		s.readLater("h", nil, func() {
			s.set(time.Now().Add(later))
			at = time.Now().Add(25 * soon)
			s.set(at)
			s.send("h")
		})
		passes(at)
		s.set(time.Time{})
		s.readLater("ello", nil, func() { s.send("ello") })
	}},
	{"passed for the poller, then moved", false, func(s sides) {
		s.set(time.Now().Add(soon))
		s.read("", os.ErrDeadlineExceeded)
		s.set(time.Now().Add(soon))
		s.read("", os.ErrDeadlineExceeded)
		s.set(time.Now().Add(later))
		s.readLater("hello", nil, func() { s.send("hello") })
	}},
	{"moved to the past during a Read", false, func(s sides) {
		s.set(time.Now().Add(later))
		s.readLater("", os.ErrDeadlineExceeded, func() { s.set(longAgo) })
	}},
	{"made nearer during a Read", false, func(s sides) {
		s.set(time.Now().Add(later))
		s.readLater("", os.ErrDeadlineExceeded, func() { s.set(time.Now().Add(soon)) })
	}},
	{"extended during a Read", false, func(s sides) { s.extend(time.Now().Add(later)) }},
	{"cleared during a Read", false, func(s sides) { s.extend(time.Time{}) }},
	{"aborted again and again", false, func(s sides) {
		for range 500 { // what net/http does for each request
			s.set(time.Time{})
			done := make(chan error, 1)
			go func() {
				_, err := s.server.Read(make([]byte, 1))
				done <- err
			}()
			s.set(longAgo)
			if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
				s.t.Fatalf("aborted Read: %v", err)
			}
		}
		s.set(time.Time{})
		s.readLater("hello", nil, func() { s.send("hello") })
	}},
	{"beyond what the clock can count", false, func(s sides) {
		for _, at := range []time.Time{time.Unix(1<<40, 0), time.Now().Add(math.MaxInt64)} {
			if err := s.server.SetDeadline(at); err != nil {
				s.t.Error(err)
			}
			s.readLater("hello", nil, func() { s.send("hello") })
			if _, err := io.WriteString(s.server, "x"); err != nil {
				s.t.Error(err)
			}
		}
	}},
	{"after Close", false, func(s sides) {
		s.server.Close()
		for name, set := range map[string]func(time.Time) error{
			"SetDeadline": s.server.SetDeadline, "SetReadDeadline": s.server.SetReadDeadline, "SetWriteDeadline": s.server.SetWriteDeadline,
		} {
			for _, at := range []time.Time{{}, longAgo, time.Now().Add(later)} {
				err := set(at)
				var oe *net.OpError
				if !errors.Is(err, net.ErrClosed) || !errors.As(err, &oe) || oe.Op != "set" {
					s.t.Errorf("%s(%v): %v", name, at, err)
				}
			}
		}
		s.read("", net.ErrClosed)
	}},
	{"of Write", true, func(s sides) {
		s.server.SetWriteDeadline(longAgo)
		if _, err := io.WriteString(s.server, "x"); !errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.Errorf("past: %v", err)
		}
		s.server.SetWriteDeadline(time.Time{})
		if _, err := io.WriteString(s.server, "x"); err != nil {
			s.t.Errorf("cleared: %v", err)
		}
		s.server.SetWriteDeadline(time.Now().Add(soon))
		for { // until the buffers of both sides are full
			if _, err := s.server.Write(make([]byte, 1<<20)); err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					s.t.Errorf("a full buffer: %v", err)
				}
				break
			}
		}
		s.server.SetReadDeadline(time.Time{})
		s.server.SetWriteDeadline(time.Now().Add(later))
		done := make(chan error, 1)
		go func() {
			_, err := s.server.Write(make([]byte, 1<<20))
			done <- err
		}()
		s.server.SetWriteDeadline(longAgo)
		if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.Errorf("moved to the past during a Write: %v", err)
		}
	}},
	{"both, of a connection that others use too", true, func(s sides) {
		s.set(longAgo)
		below := s.below()
		if _, err := below.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.Errorf("below, past: %v", err)
		}
		s.send("hello")
		below.SetReadDeadline(time.Time{})
		s.read("hello", nil)
		below.SetReadDeadline(longAgo)
		s.read("", os.ErrDeadlineExceeded)
		s.set(time.Time{})
		s.readLater("hello", nil, func() { s.send("hello") })
		s.set(longAgo)
		if _, err := below.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.Errorf("below, set above: %v", err)
		}
		s.set(time.Time{})
		below.SetReadDeadline(longAgo)
		s.set(time.Time{}) // the same once more
		s.readLater("hello", nil, func() { s.send("hello") })

		s.server.SetWriteDeadline(time.Time{})
		below.SetWriteDeadline(longAgo)
		s.server.SetWriteDeadline(time.Time{})
		if _, err := io.WriteString(s.server, "x"); err != nil {
			s.t.Error(err)
		}
	}},
	{"of a raw connection", true, func(s sides) {
		at := time.Now().Add(soon)
		s.set(at)
		rc, err := s.server.(syscall.Conn).SyscallConn()
		if err != nil {
			s.t.Fatal(err)
		}
		wait := func() error { return rc.Read(func(uintptr) bool { return false }) }
		if err := wait(); !errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.Errorf("set before: %v", err)
		}
		s.set(time.Now().Add(later))
		done := make(chan error)
		go func() { done <- wait() }()
		s.set(longAgo)
		if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.Errorf("set during the wait: %v", err)
		}
	}},
	{"of WriteTo", true, func(s sides) {
		s.set(time.Now().Add(5 * soon))
		s.send("hello")
		var got bytes.Buffer
		if _, err := io.Copy(&got, s.server); !errors.Is(err, os.ErrDeadlineExceeded) || got.String() != "hello" {
			s.t.Errorf("copied %q, %v", got.String(), err)
		}
	}},
}

// TestDeadlines has net's own connections and those that are followed do the
// same, over plain sockets and below TLS.
func TestDeadlines(t *testing.T) {
	for _, network := range []string{"tcp", "unix", "tls"} {
		for _, followed := range []bool{false, true} {
			for _, b := range deadlineBehaviours {
				if b.plain && network == "tls" {
					continue
				}
				name := network + "/bare/"
				if followed {
					name = network + "/followed/"
				}
				t.Run(name+b.name, func(t *testing.T) {
					t.Parallel()
					b.do(newSides(t, network, followed))
				})
			}
		}
	}
}

func newSides(t *testing.T, network string, followed bool) sides {
	s := sides{t: t, tls: network == "tls"}
	if s.tls {
		network = "tcp"
	}
	s.client, s.server = connect(t, network)
	if followed {
		s.server = NewSet(nobody{}).Add(s.server)
	}
	t.Cleanup(func() { s.client.Close(); s.server.Close() })
	if s.tls {
		server := tls.Server(s.server, &tls.Config{Certificates: []tls.Certificate{testCert(t)}})
		client := tls.Client(s.client, &tls.Config{InsecureSkipVerify: true})
		done := make(chan error, 1)
		go func() { done <- server.Handshake() }()
		if err := errors.Join(client.Handshake(), <-done); err != nil {
			t.Fatal(err)
		}
		s.client, s.server = client, server
	}
	return s
}

// TestDeadlineOfTheListener: a connection may come with deadlines of its own,
// by which a listener bounds the time to the first byte.
func TestDeadlineOfTheListener(t *testing.T) {
	for _, cleared := range []bool{false, true} {
		client, inner := connect(t, "tcp")
		at := time.Now().Add(soon)
		inner.SetDeadline(at)
		s := sides{t: t, client: client, server: NewSet(nobody{}).Add(inner)}
		if !cleared {
			s.read("", os.ErrDeadlineExceeded)
			if _, err := s.server.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("write: %v", err)
			}
		} else {
			s.server.SetDeadline(time.Time{})
			passes(at)
			s.readLater("hello", nil, func() { s.send("hello") })
			if _, err := s.server.Write([]byte("x")); err != nil {
				t.Errorf("write: %v", err)
			}
		}
		client.Close()
		s.server.Close()
	}
}
