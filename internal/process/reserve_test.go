package process

import (
	"net"
	"runtime"
	"testing"
)

// TestReserve: one server after the other listens where nobody else does.
func TestReserve(t *testing.T) {
	addr, release, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for range 2 {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		l.Close()
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			t.Error("somebody listens after the server is gone")
		}
	}
}

// TestReserveFromClients: a port that a connection has taken is refused to the
// next server.
func TestReserveFromClients(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("not kept free here")
	}
	addr, release, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	own, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	// As the kernel does when a client asks for no port: without SO_REUSEADDR.
	if c, err := (&net.Dialer{LocalAddr: own}).Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("a connection took the port")
	}
}
