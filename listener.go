package usher

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/gate"
)

// Listen announces on a local address as [net.Listen] does. It does not make a
// Multipath TCP socket, the default of net.Listen since Go 1.24, where the
// kernel could not stop new handshakes on it.
//
// A [Listener] on it knows that no other process has the socket, and may stop
// handshakes on it for good: it must not be given away with File.
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
	// MaxConns is the most connections that are open at a time, hijacked ones
	// included. One more is accepted and waits for a place; others stay in the
	// kernel's accept queue. While one waits, each HTTP response is its
	// connection's last, and a connection that has been idle for a second, or
	// open for five without a byte, is closed, the one that has been so longest
	// first: a newcomer does not wait for an idle timeout. A connection in a
	// request is never closed.
	//
	// What a connection does is known from a [Server]. A Listener on its own
	// only counts.
	//
	// Zero means no limit. A negative value is an error.
	MaxConns int

	// Exclusive says of a TCP listener that is not from [Listen] that its socket
	// is this process's alone: no systemd, parent, child or sibling has it, or
	// another one of its SO_REUSEPORT group, now or later. Nothing else could
	// tell. Then a drain stops new handshakes, see [Guarantee], and nobody can
	// serve from the socket ever after.
	Exclusive bool

	// HandshakeGrace is the longest that a drain waits, after new handshakes
	// have been stopped, for those under way: it should exceed the round trip
	// time of the slowest client. On Linux 5.14 and later it waits only as long
	// as there are any, unless it may not ask (NETLINK_SOCK_DIAG). It does not
	// apply where handshakes cannot be stopped (see [Guarantee]).
	//
	// Zero means 250 ms. A negative value is an error.
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

// A Listener wraps a [net.Listener] so that it can be emptied before it is
// closed, and so that each connection knows whether it is quiet.
//
// A [Server] makes its own. Use NewListener for a server that is not
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
	inner   net.Listener // as given; Addr asks it
	opts    ListenerOptions
	log     *slog.Logger
	epoch   time.Time
	closed  chan struct{} // closed by Close
	room    chan struct{} // has an element when a newcomer should look for a place
	drained chan struct{} // closed when the socket is closed and no Accept is under way

	stopping    atomic.Bool   // a stop has begun: fates are counted
	draining    atomic.Bool   // Drain has been called
	crowd       *atomic.Int32 // newcomers that wait for a place, of all Listeners of a Server
	clientCerts atomic.Bool   // TLS clients are asked for certificates

	mu         sync.Mutex
	socket     net.Listener // inner, or its heir after a unix socket's name was removed
	accepting  int          // calls of socket.Accept under way, until the connection is counted
	emptying   bool         // close the socket when its queue is empty
	finishing  bool         // inner closes its sockets when their queues are empty
	socketGone bool         // the socket has been closed
	isClosed   bool         // Close has been called
	isDrained  bool         // drained has been closed
	guarantee  Guarantee
	gate       Gate
	gateReason string
	below      *Listener // under a TLS listener that was given as inner, once known
	head, tail *Conn     // open connections; with MaxConns in the order of their last idleness
	open       int
	newcomers  int // of those, the ones that wait for a place
	aside      int // of those, the ones that Shutdown of net/http or their handler ends
	atStop     int // open when the stop began
	stoppedAt  time.Duration
	counts     listenerCounts
	watch      func() // called, without mu, when a connection left, became quiet or was set aside
}

// listenerCounts only ever grow.
type listenerCounts struct {
	accepted uint64 // connections, in all
	queued   uint64 // those accepted after the drain began
	culled   uint64 // those closed for MaxConns or for want of descriptors
	fates    [fateCount]uint64
}

// NewListener wraps l. It takes l over: only the Listener should accept from
// it and close it. l may be of any kind; see [Guarantee] for what that means.
func NewListener(l net.Listener, opts ListenerOptions) (*Listener, error) {
	if l == nil {
		return nil, errors.New("usher: NewListener: the listener is nil")
	}
	if err := opts.validate("ListenerOptions."); err != nil {
		return nil, err
	}
	return newListener(l, opts, slog.Default()), nil
}

func newListener(l net.Listener, opts ListenerOptions, log *slog.Logger) *Listener {
	if opts.HandshakeGrace == 0 {
		opts.HandshakeGrace = defaultHandshakeGrace
	}
	return &Listener{
		inner:   l,
		socket:  l,
		opts:    opts,
		log:     log,
		epoch:   time.Now(),
		closed:  make(chan struct{}),
		room:    make(chan struct{}, 1),
		crowd:   new(atomic.Int32),
		drained: make(chan struct{}),
	}
}

// now is the time on the listener's clock, which does not jump.
func (l *Listener) now() time.Duration { return time.Since(l.epoch) }

// Addr returns the address of the wrapped listener.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// SyscallConn implements [syscall.Conn]. The error wraps
// [errors.ErrUnsupported] if the wrapped listener does not.
func (l *Listener) SyscallConn() (syscall.RawConn, error) {
	l.mu.Lock()
	socket := l.socket
	l.mu.Unlock()
	if sc, ok := socket.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, fmt.Errorf("usher: %T hides its socket: %w", socket, errors.ErrUnsupported)
}

// Accept waits for the next connection and returns it as a [*Conn], or as it
// is when the wrapped listener speaks TLS itself.
//
// It outlives what ends other listeners: when the process or the system has no
// descriptor or memory left, it closes an idle connection and tries again; after
// [Listener.Drain] it blocks until [Listener.Close]. Then its error wraps
// [net.ErrClosed].
func (l *Listener) Accept() (net.Conn, error) {
	var backoff time.Duration
	for {
		c, tracked, err := l.acceptOne()
		if err == nil {
			if tracked != nil {
				if !l.admit() {
					tracked.cut()
					return nil, l.closedError("accept")
				}
				return tracked, nil
			}
			return c, nil
		}
		switch {
		case errors.Is(err, errSocketGone):
			<-l.closed
			return nil, l.closedError("accept")
		case errors.Is(err, errSocketSwapped):
			continue
		case !isExhausted(err):
			return nil, err
		}
		culled, _ := l.cull()
		backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
		l.log.Warn("usher: accept failed, will try again", "error", err, "in", backoff, "idle connection closed", culled)
		if !l.pause(backoff) {
			return nil, l.closedError("accept")
		}
	}
}

var (
	errSocketGone    = errors.New("usher: socket closed")
	errSocketSwapped = errors.New("usher: socket replaced")
)

// acceptOne accepts from the socket and counts the connection before anybody
// could think that none is left.
func (l *Listener) acceptOne() (net.Conn, *Conn, error) {
	l.mu.Lock()
	l.closeIfEmpty()
	if l.socketGone || l.isClosed {
		l.mu.Unlock()
		return nil, nil, errSocketGone
	}
	socket := l.socket
	l.accepting++
	l.mu.Unlock()

	c, err := socket.Accept()

	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepting--
	defer l.noteDrained()
	if err != nil {
		switch {
		case l.socketGone || l.isClosed:
			err = errSocketGone
		case l.socket != socket:
			err = errSocketSwapped
		case l.finishing && errors.Is(err, net.ErrClosed):
			l.closeSocket()
			err = errSocketGone
		}
		return nil, nil, err
	}
	if tc, ok := c.(*tls.Conn); ok {
		// net/http needs to see the *tls.Conn itself. If the TLS listener was
		// made on top of a Listener, that one does our work.
		if below := connOf(tc); below != nil {
			l.below = below.l
		}
		return tc, nil, nil
	}
	return nil, l.add(c), nil
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

// conns returns the open connections, those idle longest first if there is a
// limit.
func (l *Listener) conns() []*Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*Conn, 0, l.open)
	for c := l.head; c != nil; c = c.next {
		all = append(all, c)
	}
	return all
}

// add wraps c and counts it. Its caller holds l.mu.
func (l *Listener) add(nc net.Conn) *Conn {
	c := &Conn{Conn: nc, l: l, accepted: l.now()}
	c.initRaw()
	if l.stopping.Load() {
		c.state.Store(flagQueued)
		l.counts.queued++
	}
	l.counts.accepted++
	l.open++
	l.pushBack(c)
	return c
}

func (l *Listener) pushBack(c *Conn) {
	c.prev, c.next = l.tail, nil
	if l.tail == nil {
		l.head = c
	} else {
		l.tail.next = c
	}
	l.tail = c
}

func (l *Listener) unlink(c *Conn) {
	if c.prev == nil {
		l.head = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		l.tail = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
}

// moveToBack makes c the one that became idle last.
func (l *Listener) moveToBack(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tail == c || c.gone {
		return
	}
	l.unlink(c)
	l.pushBack(c)
}

// setAside notes that c is HTTP/2 or hijacked: such a connection is not closed
// for being quiet during a stop.
func (l *Listener) setAside(c *Conn) {
	l.mu.Lock()
	if !c.gone && !c.aside {
		c.aside = true
		l.aside++
	}
	l.mu.Unlock()
	l.changed()
}

// remove counts c out, once its descriptor is closed.
func (l *Listener) remove(c *Conn) {
	l.mu.Lock()
	if c.gone {
		l.mu.Unlock()
		return
	}
	c.gone = true
	l.unlink(c)
	l.open--
	if c.aside {
		l.aside--
	}
	if l.stopping.Load() {
		l.counts.fates[fateOf(c.state.Load())]++
	}
	l.mu.Unlock()
	if l.opts.MaxConns > 0 {
		l.signalRoom()
	}
	l.changed()
}

// changed tells the watcher, if a drain has begun, that something happened to
// a connection.
func (l *Listener) changed() {
	if !l.stopping.Load() {
		return
	}
	l.mu.Lock()
	watch := l.watch
	l.mu.Unlock()
	if watch != nil {
		watch()
	}
}

// noteQuiet is called when a Read of c has to wait, or c has become idle.
func (l *Listener) noteQuiet(c *Conn) {
	crowded := l.opts.MaxConns > 0 && l.crowd.Load() > 0
	if !crowded && !l.stopping.Load() || !quiet(c.state.Load()) {
		return
	}
	if crowded {
		l.signalRoom()
	}
	l.changed()
}

// Close closes the socket, if [Listener.Drain] has not, and makes Accept
// return an error that wraps [net.ErrClosed]. Connections in the accept queue
// are reset; those that were accepted stay. It does not block. Calls after the
// first do nothing and return nil.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isClosed {
		return nil
	}
	l.isClosed = true
	close(l.closed)
	return l.closeSocket()
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
