package prefork

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/seed-235859eb/usher/internal/gate"
	"github.com/seed-235859eb/usher/internal/supervised"
)

// socket is one socket of a listener.
type socket struct {
	net.Listener
	name    unixName // if it is a unix socket of this process alone
	foreign bool     // not this program's alone, see supervised.ErrForeign

	finishing bool // set with its listener's mu held
	patient   bool // empty the queue before the close; the same
}

func (s *socket) shut() (gate.Outcome, error) {
	if _, ok := s.Listener.(*net.UnixListener); ok {
		return gate.Outcome{Mechanism: gate.Name}, s.name.remove() // or the master has removed it
	}
	if s.foreign {
		return gate.Outcome{}, supervised.ErrForeign
	}
	rc, err := rawConn(s)
	if err != nil {
		return gate.Outcome{}, err
	}
	return gate.Shut(rc), nil
}

func rawConn(s *socket) (syscall.RawConn, error) {
	sc, ok := s.Listener.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("prefork: %T hides its socket: %w", s.Listener, errors.ErrUnsupported)
	}
	return sc.SyscallConn()
}

func queued(s *socket) (int, error) {
	rc, err := rawConn(s)
	if err != nil {
		return 0, err
	}
	return gate.Queued(rc)
}
