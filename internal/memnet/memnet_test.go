package memnet

import (
	"context"
	"errors"
	"net"
	"testing"

	"golang.org/x/net/nettest"
)

func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		l := Listen()
		accepted := make(chan net.Conn, 1)
		go func() {
			if c, err := l.Accept(); err == nil {
				accepted <- c
			}
		}()
		c1, err = l.Dial(context.Background())
		if err != nil {
			return nil, nil, nil, err
		}
		c2 = <-accepted
		return c1, c2, func() { l.Close(); c1.Close(); c2.Close() }, nil
	})
}

func TestListenerClose(t *testing.T) {
	l := Listen()
	l.Close()
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v, want net.ErrClosed", err)
	}
	if _, err := l.Dial(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dial after Close: %v, want net.ErrClosed", err)
	}
}

func TestCloseWrite(t *testing.T) {
	a, b := Pipe()
	a.Write([]byte("last"))
	a.CloseWrite()
	buf := make([]byte, 10)
	if n, err := b.Read(buf); n != 4 || err != nil {
		t.Errorf("Read = %d, %v, want 4, nil", n, err)
	}
	if n, err := b.Read(buf); n != 0 || err == nil {
		t.Errorf("Read = %d, %v, want 0, EOF", n, err)
	}
	if _, err := b.Write([]byte("still here")); err != nil {
		t.Errorf("Write to the closed-for-writing end: %v", err)
	}
}
