package gate

import (
	"net"
	"testing"
)

// funcs is a listener whose type cannot be compared: == panics.
type funcs struct {
	net.Listener
	accept func() (net.Conn, error)
}

func (l funcs) Accept() (net.Conn, error) { return l.accept() }

func TestListenerThatCannotBeCompared(t *testing.T) {
	c, _ := net.Pipe()
	defer c.Close()
	s := NewSocket(funcs{nil, func() (net.Conn, error) { return c, nil }})
	if got, err := s.Accept(func(net.Conn) {}); got != c || err != nil {
		t.Errorf("Accept: %v, %v", got, err)
	}
}
