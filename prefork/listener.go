package prefork

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/gate"
	"github.com/seed-235859eb/usher/internal/supervised"
)

// listener is what a worker accepts from: the socket of its seat and, while
// other seats have nobody who serves, theirs.
//
// Each socket has a goroutine of its own that accepts and hands over. So a
// connection is taken out of the kernel's queue a moment before the server asks
// for it, and must be handed over before the socket is given up.
type listener struct {
	w    *Worker
	name string
	addr net.Addr

	conns chan accepted
	done  chan struct{} // closed by Close
	over  chan struct{} // closed when Finish has done its work

	waiting atomic.Int64  // calls of Accept under way
	inHand  atomic.Int64  // connections accepted and not handed over
	handed  atomic.Uint64 // connections handed over

	mu        sync.Mutex
	sockets   map[int]*socket // by seat; one that is being emptied may have a successor here
	running   int             // goroutines that accept
	served    bool            // a server has it
	started   bool            // the sockets have their goroutines
	finishing bool
	closed    bool
	isOver    bool
}

type accepted struct {
	conn net.Conn
	err  error
}

type deadliner interface{ SetDeadline(t time.Time) error }

func newListener(w *Worker, name string, seat int, s *socket) *listener {
	return &listener{
		w: w, name: name, addr: s.Addr(),
		conns:   make(chan accepted),
		done:    make(chan struct{}),
		over:    make(chan struct{}),
		sockets: map[int]*socket{seat: s},
	}
}

// Accept implements [net.Listener].
func (l *listener) Accept() (net.Conn, error) {
	l.start()
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	select {
	case a := <-l.conns:
		return a.conn, a.err
	default:
	}
	select {
	case a := <-l.conns:
		return a.conn, a.err
	case <-l.over:
	case <-l.done:
	}
	return nil, &net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: net.ErrClosed}
}

// start gives the sockets their goroutines.
func (l *listener) start() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.started || l.closed {
		return
	}
	l.started = true
	for seat, s := range l.sockets {
		l.running++
		go l.accept(seat, s)
	}
	l.noteOver()
}

// accept hands over what comes from s until s is closed.
func (l *listener) accept(seat int, s *socket) {
	defer l.remove(seat, s)
	for {
		c, err := s.Accept()
		switch {
		case err == nil:
			l.inHand.Add(1)
			select {
			case l.conns <- accepted{conn: c}:
				l.handed.Add(1)
				l.inHand.Add(-1)
			case <-l.done:
				l.inHand.Add(-1)
				c.Close()
				s.Listener.Close() // what else is in the queue may be for others
			}
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			if l.giveUp(s) {
				return
			}
		default:
			select {
			case l.conns <- accepted{err: err}:
			case <-l.done:
			}
		}
	}
}

// lookAgain is how soon a queue that is being emptied is looked at again:
// another process may have been quicker to accept.
const lookAgain = 20 * time.Millisecond

// giveUp closes s if it is to be closed and nobody waits in its queue, and
// reports whether it did.
func (l *listener) giveUp(s *socket) bool {
	l.mu.Lock()
	finishing, patient := s.finishing, s.patient
	l.mu.Unlock()
	d, ok := s.Listener.(deadliner)
	if !finishing {
		if ok {
			d.SetDeadline(time.Time{})
		}
		return false
	}
	if patient && ok {
		if n, err := queued(s); err == nil && n > 0 {
			d.SetDeadline(time.Now().Add(lookAgain))
			return false
		}
	}
	s.Listener.Close()
	return true
}

// finish has s closed, when its queue is empty if it is patient. The caller
// holds l.mu.
func (l *listener) finish(seat int, s *socket, patient bool) {
	if s.finishing {
		return
	}
	s.finishing, s.patient = true, patient
	d, ok := s.Listener.(deadliner)
	switch {
	case !l.started:
		delete(l.sockets, seat)
		s.Listener.Close()
		l.noteOver()
	case !ok || !patient:
		s.Listener.Close()
	default:
		d.SetDeadline(time.Now()) // wakes Accept, see giveUp
	}
}

// remove is called when s is closed.
func (l *listener) remove(seat int, s *socket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sockets[seat] == s {
		delete(l.sockets, seat)
	}
	l.running--
	l.noteOver()
}

// noteOver closes l.over after Finish, once all sockets are closed. The caller
// holds l.mu.
func (l *listener) noteOver() {
	if l.finishing && len(l.sockets) == 0 && l.running == 0 && !l.isOver {
		l.isOver = true
		close(l.over)
	}
}

// adopt has l accept from another seat's socket, too.
func (l *listener) adopt(seat int, s *socket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.finishing && !l.w.final.Load() || l.sockets[seat] != nil && !l.sockets[seat].finishing {
		s.Listener.Close()
		return
	}
	l.sockets[seat] = s
	if l.started {
		l.running++
		go l.accept(seat, s)
	}
	if l.finishing {
		l.finish(seat, s, true)
	}
}

// release gives a socket back that was adopted. Its queue is emptied first: the
// seat may be about to close.
func (l *listener) release(seat int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sockets[seat]; s != nil {
		l.finish(seat, s, true)
	}
}

// Served implements [supervised.Listener].
func (l *listener) Served(s supervised.Server) {
	l.mu.Lock()
	l.served = true
	l.mu.Unlock()
	l.w.serve(s)
}

// Shut implements [supervised.Listener]. New handshakes may be stopped only if
// the whole fleet stops: what stops them belongs to the socket. The first worker
// whose lame duck is over has the master do it, which has the sockets of all. If
// that does not answer, each worker does it to its own.
func (l *listener) Shut() (gate.Outcome, error) {
	if !l.w.final.Load() {
		return gate.Outcome{}, supervised.ErrShared
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutTimeout)
	defer cancel()
	if _, err := l.w.ask(ctx, frame{Type: frameShut, Endpoint: l.name}); err != nil && !errors.Is(err, ErrNoMaster) {
		l.w.log.Warn("prefork: the gate is not shut for all at once", "endpoint", l.name, "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var weakest gate.Outcome
	var errs []error
	for _, s := range l.sockets {
		out, err := s.shut()
		weakest = gate.Weaker(weakest, out)
		errs = append(errs, err)
	}
	return weakest, errors.Join(errs...)
}

// shutTimeout is how long a worker waits for the master.
const shutTimeout = 250 * time.Millisecond

// Handshakes implements [supervised.Listener]. All sockets have the same
// address, so that one can speak for all.
func (l *listener) Handshakes() (gate.Pending, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.sockets {
		if _, ok := s.Listener.(*net.UnixListener); ok {
			return gate.Pending{}, nil // a connect is one step
		}
		rc, err := rawConn(s)
		if err != nil {
			return gate.Pending{}, err
		}
		return gate.Handshakes(rc)
	}
	return gate.Pending{}, nil
}

// Finish implements [supervised.Listener]. If other processes go on with the
// sockets, the queues are theirs, and the sockets are closed at once.
func (l *listener) Finish() {
	patient := l.w.final.Load()
	if patient {
		l.start() // the server is ready, and may be about to call Accept
	}
	l.finishAll(patient)
}

func (l *listener) finishAll(patient bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finishing = true
	for seat, s := range l.sockets {
		l.finish(seat, s, patient)
	}
	l.noteOver()
}

// abandon gives the sockets up if no server has them: what is in their queues
// is for others.
func (l *listener) abandon() {
	l.mu.Lock()
	used := l.served || l.started
	l.mu.Unlock()
	if !used {
		l.finishAll(false)
	}
}

// Queued implements [supervised.Listener].
func (l *listener) Queued() (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := int(l.inHand.Load())
	for _, s := range l.sockets {
		n, err := queued(s)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// SyscallConn implements [syscall.Conn] with a socket of the worker's seat.
func (l *listener) SyscallConn() (syscall.RawConn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sockets[l.w.seat]; s != nil {
		if sc, ok := s.Listener.(syscall.Conn); ok {
			return sc.SyscallConn()
		}
	}
	return nil, fmt.Errorf("prefork: the listener has no socket: %w", errors.ErrUnsupported)
}

// Addr implements [net.Listener].
func (l *listener) Addr() net.Addr { return l.addr }

// Close implements [net.Listener]. It closes this process's descriptors.
func (l *listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	close(l.done)
	var errs []error
	for seat, s := range l.sockets {
		if err := s.Listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
		if !l.started {
			delete(l.sockets, seat)
		}
	}
	return errors.Join(errs...)
}

var (
	_ supervised.Listener = (*listener)(nil)
	_ syscall.Conn        = (*listener)(nil)
)
