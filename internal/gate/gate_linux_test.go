package gate

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
)

// TestSYNFilter runs the program on TCP headers, without a kernel.
func TestSYNFilter(t *testing.T) {
	vm, err := bpf.NewVM(synFilter)
	if err != nil {
		t.Fatal(err)
	}
	const fin, rst, psh, ece, cwr = 0x01, 0x04, 0x08, 0x40, 0x80
	for _, tt := range []struct {
		name  string
		flags byte
		pass  bool
	}{
		{"SYN", tcpSYN, false},
		{"SYN with ECN", tcpSYN | ece | cwr, false},
		{"SYN ACK", tcpSYN | tcpACK, true},
		{"ACK", tcpACK, true},
		{"data", tcpACK | psh, true},
		{"FIN", tcpACK | fin, true},
		{"RST", rst, true},
	} {
		header := make([]byte, 20)
		header[13] = tt.flags
		n, err := vm.Run(header)
		if err != nil {
			t.Fatal(err)
		}
		if pass := n > 0; pass != tt.pass {
			t.Errorf("%s: pass = %v, want %v", tt.name, pass, tt.pass)
		}
	}
}

func listen(t *testing.T, network, address string, multipath bool) (net.Listener, syscall.RawConn) {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(multipath)
	l, err := lc.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	rc, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return l, rc
}

func TestShut(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		t.Run(address, func(t *testing.T) {
			l, rc := listen(t, "tcp", address, false)
			_, port, _ := net.SplitHostPort(l.Addr().String())
			host, _, _ := net.SplitHostPort(address)
			if host == "" {
				host = "127.0.0.1" // through a socket of both families
			}
			dial := func(ctx context.Context) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
			}
			before, err := dial(t.Context())
			if err != nil {
				t.Skip(err)
			}
			defer before.Close()
			if n, err := Queued(rc); n != 1 || err != nil {
				t.Errorf("Queued = %d, %v, want 1", n, err)
			}
			if err := Shut(rc); err != nil {
				t.Fatal(err)
			}
			// Dropped is neither refused nor accepted: the connect hangs.
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if c, err := dial(ctx); err == nil {
				c.Close()
				t.Error("connect succeeded through a shut gate")
			} else if !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
				t.Errorf("connect through a shut gate: %v, want a timeout", err)
			}
			if n, err := Queued(rc); n != 1 || err != nil {
				t.Errorf("Queued = %d, %v, want 1", n, err)
			}
			// Who was there before is served.
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			before.Write([]byte("x"))
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Errorf("read through a shut gate: %v", err)
			}
		})
	}
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

func TestShutUnsupported(t *testing.T) {
	_, rc := listen(t, "unix", t.TempDir()+"/s", false)
	if err := Shut(rc); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("unix socket: %v", err)
	}
	l, rc := listen(t, "tcp", "127.0.0.1:0", true)
	if on, err := isMultipath(rc); err != nil || !on {
		t.Skipf("no Multipath TCP here: %v", err)
	}
	if err := Shut(rc); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Multipath TCP socket: %v", err)
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := Queued(rc); n != 1 || err != nil {
		t.Errorf("Queued of a Multipath TCP socket = %d, %v, want 1", n, err)
	}
}

func isMultipath(rc syscall.RawConn) (on bool, err error) {
	cerr := rc.Control(func(fd uintptr) {
		var proto int
		proto, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PROTOCOL)
		on = proto != syscall.IPPROTO_TCP
	})
	return on, errors.Join(err, cerr)
}
