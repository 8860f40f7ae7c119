package gate

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
)

// A Guarantee says what a stop could do for connections that nobody had
// accepted yet. See the root package.
type Guarantee int

const (
	GuaranteeNone  Guarantee = iota // those in the accept queue were reset, or nothing is known of them
	GuaranteeQueue                  // the accept queue was served; a handshake that ended just then was reset
	GuaranteeAll                    // each connection that its client saw as established was served
)

// A Result is what a stop could do, and how.
type Result struct {
	Guarantee Guarantee
	Mechanism Mechanism
	Reason    string // why it is not more
}

// Weaker returns the one that promises less; of equals, one with a reason.
func (r Result) Weaker(other Result) Result {
	if other.Guarantee < r.Guarantee || other.Guarantee == r.Guarantee && r.Reason == "" {
		return other
	}
	return r
}

// ErrClosed is returned by [Socket.Accept] once the socket is closed.
var ErrClosed = fmt.Errorf("gate: socket closed: %w", net.ErrClosed)

// A Socket is a listening socket that is emptied before it is closed. It is
// open, then emptying, then closed, and never goes back. All methods may be
// called from many goroutines at once.
type Socket struct {
	done chan struct{} // closed when the socket is, and no Accept is under way

	mu        sync.Mutex // guards the following
	listener  net.Listener
	renamed   int       // how often listener was replaced: its type may not be comparable
	name      *unixName // of a unix socket that has one
	state     socketState
	accepting int    // calls of listener.Accept under way, until the connection is counted
	promised  Result // what it comes to if the socket is closed with an empty queue
	result    Result // what it came to; see finish
	closeErr  error
}

type socketState int

const (
	socketOpen      socketState = iota
	socketEmptying              // to be closed as soon as the queue is empty
	socketFinishing             // the listener itself closes when its queues are empty
	socketClosing               // Close of the listener has been called
	socketClosed                // and has returned
)

// NewSocket returns the Socket of l, which nobody else should accept from or
// close from then on.
func NewSocket(l net.Listener) *Socket {
	return &Socket{listener: l, name: nameOf(l), done: make(chan struct{})}
}

// Accept returns the next connection. It calls count with it before anybody
// could think that none is left. Once the socket is closed the error is
// ErrClosed; any other is the listener's.
func (s *Socket) Accept(count func(net.Conn)) (net.Conn, error) {
	for {
		s.mu.Lock()
		s.closeIfEmpty()
		if s.state >= socketClosing {
			s.mu.Unlock()
			return nil, ErrClosed
		}
		l, renamed := s.listener, s.renamed
		s.accepting++
		s.mu.Unlock()

		c, err := l.Accept()

		s.mu.Lock()
		if err == nil {
			count(c)
		}
		s.accepting--
		replaced := s.renamed != renamed
		switch {
		case err == nil:
		case s.state >= socketClosing:
			err = ErrClosed
		case s.state == socketFinishing && errors.Is(err, net.ErrClosed):
			s.close(true)
			err = ErrClosed
		}
		s.noteDone()
		s.mu.Unlock()
		if err != nil && replaced && err != ErrClosed {
			continue // its name was removed; the queue goes on
		}
		return c, err
	}
}

// SyscallConn returns the socket's descriptor. The error wraps
// [errors.ErrUnsupported] if the listener hides it.
func (s *Socket) SyscallConn() (syscall.RawConn, error) {
	s.mu.Lock()
	l := s.listener
	s.mu.Unlock()
	if sc, ok := l.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, fmt.Errorf("%T hides its socket: %w", l, errUnsupported)
}

// RemoveName takes the name of a unix socket away, so that nobody new finds it,
// and leaves its queue. The result is what the socket will come to once that has
// been served: connecting is one step, so who found the name is in the queue.
//
// A name stays if it is not in the file system, or if another socket has it by
// now, or if the socket was inherited.
func (s *Socket) RemoveName() Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != socketOpen {
		return Result{GuaranteeNone, None, "the socket is closed already"}
	}
	l, removed, err := s.name.unpublish(s.listener)
	s.listener = l
	s.renamed++
	switch {
	case err != nil:
		return Result{GuaranteeQueue, None, err.Error()}
	case !removed:
		return Result{GuaranteeQueue, None, "the socket's name stays"}
	}
	return Result{GuaranteeAll, Name, ""}
}

// Empty closes the socket as soon as its queue is empty, which comes to r then.
// Somebody must keep calling Accept meanwhile.
func (s *Socket) Empty(r Result) {
	s.begin(socketEmptying, r)
}

// Finish says that the listener closes itself when its queues are empty, which
// comes to r then.
func (s *Socket) Finish(r Result) {
	s.begin(socketFinishing, r)
}

func (s *Socket) begin(state socketState, r Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != socketOpen {
		return
	}
	s.state, s.promised = state, r
	s.closeIfEmpty()
}

// Close closes the socket, whatever its queue holds. It does not block: the
// Close of a listener that is not the kernel's may, and Done waits for that.
// Calls after the first do nothing.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close(false)
	return s.closeErr
}

// Done returns a channel that is closed when the socket is, and each connection
// that came from it is counted.
func (s *Socket) Done() <-chan struct{} { return s.done }

// Result returns what it came to: it is decided when the socket is closed, and
// promises nothing before.
func (s *Socket) Result() Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result
}

// Queued returns the number of connections in the accept queue; see [Queued].
func (s *Socket) Queued() (int, error) {
	rc, err := s.SyscallConn()
	if err != nil {
		return 0, err
	}
	return Queued(rc)
}

// queued is Queued with s.mu held.
func (s *Socket) queued() (int, error) {
	sc, ok := s.listener.(syscall.Conn)
	if !ok {
		return 0, errUnsupported
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	return Queued(rc)
}

// closeIfEmpty closes the socket if that is wanted and nobody waits in its
// queue, or if that cannot be known. It is called before each accept, so that
// the moment between the last look and the close is as short as can be. Its
// caller holds s.mu.
func (s *Socket) closeIfEmpty() {
	if s.state != socketEmptying {
		return
	}
	if n, err := s.queued(); err == nil && n > 0 {
		return
	}
	s.close(true)
}

// close closes the socket. Its caller holds s.mu, and says whether the queue
// was served.
func (s *Socket) close(emptied bool) {
	if s.state >= socketClosing {
		return
	}
	n, err := s.queued()
	finished := s.state == socketFinishing && emptied
	switch {
	case finished:
		s.result = s.promised
	case err != nil:
		s.result = Result{GuaranteeNone, None, err.Error()}
	case n > 0:
		s.result = Result{GuaranteeNone, None, fmt.Sprintf("closed with %d connections in the accept queue", n)}
	case emptied:
		s.result = s.promised
	default:
		s.result = Result{GuaranteeQueue, None, "closed before handshakes under way had ended"}
	}
	s.state = socketClosing
	switch s.listener.(type) {
	case *net.TCPListener, *net.UnixListener:
		s.closeErr = s.listener.Close()
		s.state = socketClosed
		s.noteDone()
		return
	}
	go func(l net.Listener) {
		err := l.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.closeErr = err
		s.state = socketClosed
		s.noteDone()
	}(s.listener)
}

// noteDone closes s.done when it is time. Its caller holds s.mu.
func (s *Socket) noteDone() {
	if s.state != socketClosed || s.accepting > 0 {
		return
	}
	select {
	case <-s.done:
	default:
		close(s.done)
	}
}
