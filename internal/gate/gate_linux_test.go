package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
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

func listen(t testing.TB, network, address string, multipath bool) (net.Listener, syscall.RawConn) {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(multipath)
	l, err := lc.Listen(t.Context(), network, address)
	if err != nil && address == "[::1]:0" {
		t.Skip(err)
	}
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

// allowed returns the mechanisms that the kernel lets this process use on a
// plain TCP socket: what a test expects depends on who runs it.
func allowed(t *testing.T) (all []Mechanism) {
	t.Helper()
	_, rc := listen(t, "tcp", "127.0.0.1:0", false)
	// An interface first, as somebody who is not root cannot go back to none.
	for _, m := range []Mechanism{Filter, Interface} {
		if err := control(rc, map[Mechanism]func(int) error{Filter: attachFilter, Interface: setBound}[m]); err == nil {
			all = append([]Mechanism{m}, all...)
		} else {
			t.Logf("the kernel refuses %s: %v", m, err)
		}
	}
	return append(all, None)
}

// sockets are the kinds that a gate is tried on.
var sockets = []struct {
	address   string
	client    string // host that clients connect to
	multipath bool
}{
	{"127.0.0.1:0", "127.0.0.1", false},
	{"[::1]:0", "::1", false},
	{":0", "127.0.0.1", false}, // through a socket of both families
	{":0", "::1", false},
	{"127.0.0.1:0", "127.0.0.1", true},
	{":0", "127.0.0.1", true},
}

// eachSocket runs f with a listener of each kind and a dialer to it.
func eachSocket(t *testing.T, f func(t *testing.T, l net.Listener, rc syscall.RawConn, multipath bool, dial func(context.Context) (net.Conn, error))) {
	for _, s := range sockets {
		t.Run(fmt.Sprintf("%s from %s, multipath %t", s.address, s.client, s.multipath), func(t *testing.T) {
			l, rc := listen(t, "tcp", s.address, s.multipath)
			if on, err := isMultipath(rc); err != nil || on != s.multipath {
				t.Skipf("no Multipath TCP here: %v", err)
			}
			_, port, _ := net.SplitHostPort(l.Addr().String())
			f(t, l, rc, s.multipath, func(ctx context.Context) (net.Conn, error) {
				c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(s.client, port))
				if errors.Is(err, unix.EADDRNOTAVAIL) {
					t.Skip(err)
				}
				return c, err
			})
		})
	}
}

// TestShut: newcomers are refused, or dropped by a filter, and who was there
// before is served.
func TestShut(t *testing.T) {
	can := allowed(t)
	eachSocket(t, func(t *testing.T, l net.Listener, rc syscall.RawConn, multipath bool, dial func(context.Context) (net.Conn, error)) {
		before, err := dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer before.Close()
		if n, err := Queued(rc); n != 1 || err != nil {
			t.Errorf("Queued = %d, %v, want 1", n, err)
		}
		want := can[0]
		if multipath && (want != Interface || !Multipath()) {
			want = None
		}
		for range 2 { // the second time nothing changes
			if out := Shut(rc); out.Mechanism != want || want == Interface && out.Refused != nil {
				t.Fatalf("Shut = %+v, want %s", out, want)
			}
		}
		newcomer(t, want, dial)
		if n, err := Queued(rc); n != 1 || err != nil {
			t.Errorf("Queued = %d, %v, want 1", n, err)
		}
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

// newcomer fails the test unless a connect ends as m has it.
func newcomer(t *testing.T, m Mechanism, dial func(context.Context) (net.Conn, error)) {
	t.Helper()
	wait := time.Minute
	if m == Filter {
		wait = 50 * time.Millisecond // dropped is neither refused nor accepted: the connect hangs
	}
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	c, err := dial(ctx)
	if err == nil {
		c.Close()
	}
	switch {
	case m == None && err == nil:
	case m == Interface && errors.Is(err, unix.ECONNREFUSED):
	case m == Filter && (errors.Is(err, context.DeadlineExceeded) || isTimeout(err)):
	default:
		t.Errorf("connect to a socket shut by %s: %v", m, err)
	}
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// TestShutOne: the filter, or the reason why not.
func TestShutOne(t *testing.T) {
	l, rc := listen(t, "tcp", "127.0.0.1:0", false)
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}
	out := ShutOne(rc)
	if slices.Contains(allowed(t), Filter) {
		if out.Mechanism != Filter || out.Refused != nil {
			t.Fatalf("ShutOne = %+v", out)
		}
	} else if out.Mechanism != None || !errors.Is(out.Refused, unix.EPERM) {
		t.Fatalf("ShutOne = %+v, want none because of EPERM", out)
	}
	newcomer(t, out.Mechanism, dial)
}

// TestFallback: each mechanism is tried once, in order, and the reasons of those
// before the one that works are told.
func TestFallback(t *testing.T) {
	var tried []Mechanism
	attempt := func(m Mechanism, err error) try {
		return try{m, func() error { tried = append(tried, m); return err }}
	}
	out := firstOf(attempt(Interface, unix.ENOPROTOOPT), attempt(Filter, nil))
	if out.Mechanism != Filter || !slices.Equal(tried, []Mechanism{Interface, Filter}) {
		t.Errorf("%+v after %v", out, tried)
	}
	if r, ok := errors.AsType[*Refusal](out.Refused); !ok || r.Mechanism != Interface || r.Err != unix.ENOPROTOOPT {
		t.Errorf("refused: %v", out.Refused)
	}
	out = firstOf(attempt(Interface, unix.EPERM), attempt(Filter, unix.EACCES))
	if out.Mechanism != None || !errors.Is(out.Refused, unix.EPERM) || !errors.Is(out.Refused, unix.EACCES) {
		t.Errorf("%+v", out)
	}
	tried = nil
	if out = firstOf(attempt(Interface, nil), attempt(Filter, nil)); out.Mechanism != Interface || len(tried) != 1 {
		t.Errorf("%+v after %v", out, tried)
	}
}

// TestBoundSocket: a socket that its owner has bound to a device can be bound
// away by CAP_NET_RAW only, and then the filter is next.
func TestBoundSocket(t *testing.T) {
	can := allowed(t)
	shut := func(t *testing.T) Outcome {
		l, rc := listen(t, "tcp", "127.0.0.1:0", false)
		if err := control(rc, func(fd int) error {
			return unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo")
		}); err != nil {
			t.Skip(err)
		}
		out := Shut(rc)
		newcomer(t, out.Mechanism, func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		})
		return out
	}
	t.Run("as it is", func(t *testing.T) {
		if out := shut(t); out.Mechanism != Interface && !errors.Is(out.Refused, unix.EPERM) || !slices.Contains(can, out.Mechanism) {
			t.Errorf("Shut = %+v", out)
		}
	})
	t.Run("without CAP_NET_RAW", func(t *testing.T) {
		want := None
		if slices.Contains(can, Filter) {
			want = Filter
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			if err := dropNetRaw(); err != nil {
				t.Error(err)
			} else if out := shut(t); out.Mechanism != want || !errors.Is(out.Refused, unix.EPERM) {
				t.Errorf("Shut = %+v, want %s", out, want)
			}
		}()
		<-done
	})
}

// dropNetRaw takes CAP_NET_RAW from this thread.
func dropNetRaw() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << unix.CAP_NET_RAW
	return unix.Capset(&header, &data[0])
}

func TestShutUnsupported(t *testing.T) {
	_, rc := listen(t, "unix", t.TempDir()+"/s", false)
	if out := Shut(rc); out.Mechanism != None || !errors.Is(out.Refused, errors.ErrUnsupported) {
		t.Errorf("unix socket: %+v", out)
	}
	if p, err := Handshakes(rc); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("unix socket: %+v, %v", p, err)
	}
}

func isMultipath(rc syscall.RawConn) (on bool, err error) {
	err = control(rc, func(fd int) error {
		proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		on = proto != unix.IPPROTO_TCP
		return err
	})
	return on, err
}
