package usher

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/asynclog"
	"github.com/seed-235859eb/usher/internal/gate"
	"github.com/seed-235859eb/usher/internal/maxconns"
	"github.com/seed-235859eb/usher/internal/nethttp"
	"github.com/seed-235859eb/usher/internal/track"
)

// Listen announces on a local address as [net.Listen] does. It does not make a
// Multipath TCP socket, the default of net.Listen since Go 1.24, where the
// kernel could not stop new handshakes on it.
//
// A [Listener] on it knows that no other process has the socket, and may stop
// handshakes on it for good. So the socket must not be given to another process,
// with File for instance.
func Listen(network, address string) (net.Listener, error) {
	var lc net.ListenConfig
	if !gate.Multipath() {
		lc.SetMultipathTCP(false)
	}
	l, err := lc.Listen(context.Background(), network, address)
	if tl, ok := l.(*net.TCPListener); ok {
		return ownListener{tl}, err
	}
	return l, err
}

// ownListener is a listener on a socket that this process made for itself. What
// stops handshakes belongs to the socket, not to a descriptor: on one that
// systemd or a parent process holds it would stay, and keep everybody out of the
// server that comes next.
type ownListener struct{ *net.TCPListener }

// ListenerOptions are the options of a [Listener]. The zero value is the
// default for production.
type ListenerOptions struct {
	// MaxConns is the highest number of connections that are open at once, with
	// those that were hijacked. The next one, a newcomer, is accepted and waits
	// for a place. All after that stay in the kernel's accept queue.
	//
	// While a newcomer waits, each HTTP response is its connection's last, and
	// idle connections are closed: the one that has been idle longest first, if
	// that is a second or more, or five seconds without a first byte. A
	// connection in a request is never closed.
	//
	// A Listener without a [Server] does not know which connections are idle: it
	// counts, and closes none.
	//
	// Zero means no limit. A negative value is an error.
	MaxConns int

	// Exclusive declares that only this process has the socket of a TCP listener
	// that is not from [Listen]: no systemd, parent, child or sibling has it, or
	// another socket of its SO_REUSEPORT group, now or later. usher cannot find
	// that out by itself. Then a drain stops new handshakes (see [Guarantee]), and
	// nobody can serve from the socket afterwards. The default is false.
	Exclusive bool

	// HandshakeGrace is how long a drain waits at most for handshakes under way,
	// after new ones have been stopped. It should exceed the round trip time of
	// the slowest client. On Linux 5.14 and later the wait ends when no handshake
	// is left, if the process may ask the kernel (NETLINK_SOCK_DIAG). Where
	// handshakes cannot be stopped (see [Guarantee]) there is no wait.
	//
	// Zero means 250 ms; for a [Server], a twentieth of GracePeriod if that is
	// less. A negative value is an error.
	HandshakeGrace time.Duration
}

const defaultHandshakeGrace = 250 * time.Millisecond

func (o ListenerOptions) validate(prefix string) error {
	if o.MaxConns < 0 {
		return fmt.Errorf("usher: %sMaxConns is %d, must not be negative", prefix, o.MaxConns)
	}
	if o.HandshakeGrace < 0 {
		return fmt.Errorf("usher: %sHandshakeGrace is %v, must not be negative", prefix, o.HandshakeGrace)
	}
	return nil
}

// A Listener wraps a [net.Listener]. Its Drain method serves the accept queue
// before the socket is closed. It also knows of each connection whether its
// client has sent a part of a request.
//
// A [Server] makes its own Listener. Use [NewListener] for a server that is not
// net/http's, or that somebody else starts:
//
//	l, err := usher.NewListener(inner, usher.ListenerOptions{})
//	go grpcServer.Serve(l)
//	<-ctx.Done()
//	l.Drain(drainCtx)         // Accept still blocks: Serve does not return
//	grpcServer.GracefulStop() // closes l
//
// All methods may be called from many goroutines at once.
type Listener struct {
	inner  net.Listener // as given; Addr asks it
	opts   ListenerOptions
	log    *slog.Logger
	conns  *track.Set
	limit  *maxconns.Limit
	socket *gate.Socket

	ended     atomic.Bool   // see end
	closed    chan struct{} // closed by Close
	closeOnce sync.Once
	drainOnce sync.Once
	gateShut  chan struct{} // closed when handshakes have ended, or will not be waited for

	mu       sync.Mutex // guards the following
	below    *Listener  // that inner accepts from, if it speaks TLS on top of one; or nil
	observer observer   // the Server that serves it, or nil
}

// An observer is what a Listener tells of itself. It must not block.
type observer interface {
	connsChanged()           // a connection left, became quiet or was detached
	newcomersChanged(by int) // so many more wait for a place
	listenerEmptied()        // the last connection left after the Listener had ended
}

// connOwner is the Listener as the owner of its connections.
type connOwner Listener

// Notice implements [track.Owner].
func (o *connOwner) Notice(_ *track.Conn, e track.Events) {
	l := (*Listener)(o)
	if e&track.Left != 0 {
		l.limit.Recheck()
	}
	l.mu.Lock()
	observer := l.observer
	l.mu.Unlock()
	switch {
	case observer == nil:
	case l.conns.Stopping():
		observer.connsChanged()
	case l.isSpent():
		observer.listenerEmptied()
	}
}

// listenerOf returns the Listener that accepted c, or nil.
func listenerOf(c *track.Conn) *Listener {
	if c == nil {
		return nil
	}
	o, _ := c.Owner().(*connOwner)
	return (*Listener)(o)
}

// underTLS returns a Listener below l if l is a listener of crypto/tls, else
// nil. It puts one there, if there is none: the socket below can be emptied
// before it is closed, and the connections below TLS tell what they do.
func underTLS(l net.Listener, opts ListenerOptions, log *slog.Logger) *Listener {
	field, ok := nethttp.TLSInner(l)
	if !ok {
		return nil
	}
	inner, _ := field.Interface().(net.Listener)
	if inner == nil {
		return nil
	}
	below, ok := inner.(*Listener)
	if !ok {
		below = newListener(inner, opts, log)
		field.Set(reflect.ValueOf(below))
	}
	return below
}

// listenerUnderTLS returns the Listener that a listener of crypto/tls accepts
// from, or nil.
func listenerUnderTLS(l net.Listener) *Listener {
	if f, ok := nethttp.TLSInner(l); ok {
		inner := f.Interface()
		if w, ok := inner.(interface{ Unwrap() net.Listener }); ok {
			inner = w.Unwrap() // goaway's
		}
		ours, _ := inner.(*Listener)
		return ours
	}
	return nil
}

// listenerBelow returns the Listener that l is, or nil.
func listenerBelow(l net.Listener) *Listener {
	if ours, ok := l.(*Listener); ok {
		return ours
	}
	return listenerUnderTLS(l)
}

// observe has o told from now on, unless somebody is already.
func (l *Listener) observe(o observer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.observer == nil {
		l.observer = o
		l.limit.Observe(o.newcomersChanged)
	}
}

func (l *Listener) observedBy() observer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.observer
}

// NewListener wraps l, which may be of any kind; see [Guarantee] for the
// difference that it makes. From then on only the Listener should accept from l
// and close it. An option that is out of range is an error, and so is a nil l.
func NewListener(l net.Listener, opts ListenerOptions) (*Listener, error) {
	if l == nil {
		return nil, errors.New("usher: NewListener: the listener is nil")
	}
	if err := opts.validate("ListenerOptions."); err != nil {
		return nil, err
	}
	return newListener(l, opts, slog.New(asynclog.NewHandler(slog.Default().Handler()))), nil
}

func newListener(inner net.Listener, opts ListenerOptions, log *slog.Logger) *Listener {
	if opts.HandshakeGrace == 0 {
		opts.HandshakeGrace = defaultHandshakeGrace
	}
	l := &Listener{
		inner:    inner,
		opts:     opts,
		log:      log,
		closed:   make(chan struct{}),
		gateShut: make(chan struct{}),
	}
	l.conns = track.NewSet((*connOwner)(l))
	l.limit = maxconns.New(l.conns, opts.MaxConns)
	l.below = underTLS(inner, opts, log)
	if own, ok := inner.(ownListener); ok {
		inner = own.TCPListener
	}
	l.socket = gate.NewSocket(inner)
	return l
}

// under returns the Listener that l's inner accepts from, as far as is known.
func (l *Listener) under() *Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.below
}

func (l *Listener) setUnder(below *Listener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.below = below
}

// Addr returns the address of the wrapped listener.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// SyscallConn implements [syscall.Conn]. The error wraps
// [errors.ErrUnsupported] if the wrapped listener does not.
func (l *Listener) SyscallConn() (syscall.RawConn, error) {
	if below := l.under(); below != nil {
		return below.SyscallConn()
	}
	rc, err := l.socket.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("usher: %w", err)
	}
	return rc, nil
}

// Accept waits for the next connection. The result behaves as the connection of
// the wrapped listener does, with ReadFrom, CloseWrite and SyscallConn if that
// has them. Its NetConn method returns the wrapped connection. A *tls.Conn is
// returned as it is.
//
// When the process or the system has no descriptor or memory left, Accept closes
// an idle connection and tries again. After [Listener.Drain] it blocks until
// [Listener.Close]. Then its error wraps [net.ErrClosed].
func (l *Listener) Accept() (net.Conn, error) {
	var backoff time.Duration
	for {
		var tracked *track.Conn
		c, err := l.socket.Accept(func(c net.Conn) {
			if below := listenerOf(track.Of(c)); below != nil {
				l.setUnder(below) // which follows the connection
				return
			}
			// net/http needs to see a *tls.Conn itself.
			if _, ok := c.(*tls.Conn); !ok {
				tracked = l.conns.Add(c)
			}
		})
		switch {
		case err == nil && tracked == nil:
			return c, nil
		case err == nil:
			if !l.limit.Admit(l.closed) {
				tracked.Cut()
				return nil, l.closedError("accept")
			}
			return tracked, nil
		case errors.Is(err, gate.ErrClosed):
			<-l.closed
			return nil, l.closedError("accept")
		case !isExhausted(err):
			return nil, err
		}
		l.conns.KeepTime()
		evicted, _ := l.limit.Evict()
		backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
		l.log.Warn("usher: accept failed, will try again", "error", err, "in", backoff, "idle connection closed", evicted)
		if !l.pause(backoff) {
			return nil, l.closedError("accept")
		}
	}
}

// pause waits for d and reports false if l was closed meanwhile.
func (l *Listener) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.closed:
		return false
	}
}

// Close closes the socket, unless [Listener.Drain] has, and makes Accept return
// an error that wraps [net.ErrClosed]. Connections in the accept queue are reset.
// Accepted ones stay open. Close does not block. Calls after the first do nothing
// and return nil.
func (l *Listener) Close() (err error) {
	l.closeOnce.Do(func() {
		close(l.closed)
		err = l.socket.Close()
	})
	return err
}

func (l *Listener) closedError(op string) error {
	addr := l.Addr()
	return &net.OpError{Op: op, Net: addr.Network(), Addr: addr, Err: net.ErrClosed}
}

// isExhausted reports whether err says that the process or the system lacks
// something that the end of another connection would give back.
func isExhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

var (
	_ net.Listener = (*Listener)(nil)
	_ syscall.Conn = (*Listener)(nil)
)
