package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// deferAccept has the kernel keep a handshake under way until its client sends
// something.
func deferAccept(fd int) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 60)
}

// awaitPending looks until the count is as wanted.
func awaitPending(t *testing.T, rc syscall.RawConn, want Pending) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		p, err := Handshakes(rc)
		if err != nil {
			t.Fatal(err)
		}
		if p == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, want %+v", p, want)
		}
		time.Sleep(time.Millisecond)
	}
}

// counts skips a test where handshakes cannot be counted.
func counts(t testing.TB) {
	t.Helper()
	_, rc := listen(t, "tcp", "127.0.0.1:0", false)
	if _, err := Handshakes(rc); errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOPROTOOPT) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// TestHandshakes: those of this address, before and after the gate, until they
// end, and nobody else's.
func TestHandshakes(t *testing.T) {
	counts(t)
	eachSocket(t, func(t *testing.T, l net.Listener, rc syscall.RawConn, multipath bool, dial func(context.Context) (net.Conn, error)) {
		if err := control(rc, deferAccept); err != nil {
			t.Skip(err)
		}
		awaitPending(t, rc, Pending{})
		const n = 3
		var conns []net.Conn
		for range n {
			c, err := dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns = append(conns, c)
		}
		_, other := listen(t, "tcp", "127.0.0.1:0", false)
		awaitPending(t, rc, Pending{Handshakes: n})
		awaitPending(t, other, Pending{})
		Shut(rc)
		awaitPending(t, rc, Pending{Handshakes: n})
		for i, c := range conns {
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			a, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if _, err := a.Read(make([]byte, 1)); err != nil {
				t.Error(err)
			}
			awaitPending(t, rc, Pending{Handshakes: n - 1 - i})
		}
	})
}

// TestHandshakesOfAnotherAddress on the same port do not count.
func TestHandshakesOfAnotherAddress(t *testing.T) {
	counts(t)
	l, rc := listen(t, "tcp", "127.0.0.1:0", false)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	other, err := net.Listen("tcp", "127.0.0.2:"+port)
	if err != nil {
		t.Skip(err)
	}
	defer other.Close()
	otherConn, err := other.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := control(otherConn, deferAccept); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", other.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	awaitPending(t, otherConn, Pending{Handshakes: 1})
	Shut(rc)
	awaitPending(t, rc, Pending{})
}

// TestOpenSiblings: as long as one socket of a group is not tied away, those
// that are may still get connections, and the gate is not over.
func TestOpenSiblings(t *testing.T) {
	counts(t)
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		return control(rc, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	}}
	lc.SetMultipathTCP(false)
	address := "127.0.0.1:0"
	var rcs []syscall.RawConn
	for range 3 {
		l, err := lc.Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		address = l.Addr().String()
		rc, err := l.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		rcs = append(rcs, rc)
	}
	awaitPending(t, rcs[0], Pending{})
	for i, rc := range rcs {
		if out := Shut(rc); out.Mechanism != Interface {
			t.Skipf("%+v", out)
		}
		awaitPending(t, rcs[0], Pending{Open: len(rcs) - 1 - i})
	}
	newcomer(t, Interface, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	})
}

// TestHandshakesInAnotherNamespace are not known, rather than none.
func TestHandshakesInAnotherNamespace(t *testing.T) {
	counts(t)
	_, rc := listen(t, "tcp", "127.0.0.1:0", false)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		if p, err := Handshakes(rc); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Handshakes = %+v, %v", p, err)
		}
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Skip("unshare:", err)
	}
}

func TestNetlinkError(t *testing.T) {
	data := make([]byte, 4)
	if err := netlinkError(data); err != nil {
		t.Error(err)
	}
	if err := netlinkError(data[:3]); err == nil {
		t.Error("a short message is no error")
	}
	data = []byte{0xfe, 0xff, 0xff, 0xff} // -ENOENT, on a little-endian machine
	if err := netlinkError(data); err == nil {
		t.Error("no error")
	}
}

// BenchmarkHandshakes is what a look costs on a machine with so many sockets.
func BenchmarkHandshakes(b *testing.B) {
	counts(b)
	for _, n := range []int{0, 16_000} {
		b.Run(fmt.Sprintf("%d sockets", n), func(b *testing.B) {
			l, rc := listen(b, "tcp", ":0", false)
			_, port, _ := net.SplitHostPort(l.Addr().String())
			for i := range n / 2 { // each connection has two
				c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port))
				if err != nil {
					b.Skipf("connection %d: %v", i, err)
				}
				defer c.Close()
				a, err := l.Accept()
				if err != nil {
					b.Skipf("connection %d: %v", i, err)
				}
				defer a.Close()
			}
			for b.Loop() {
				if p, err := Handshakes(rc); err != nil || p.Handshakes > 0 {
					b.Fatal(p, err)
				}
			}
		})
	}
}
