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

// Listen announces on a local address as [net.Listen] does, with plain TCP:
// since Go 1.24 net.Listen makes Multipath TCP sockets, on which Linux refuses
// the filter that lets a stop lose nothing.
//
// A [Listener] on it knows that no other process has the socket, unless it is
// given away with File, and may stop handshakes on it.
func Listen(network, address string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), network, address)
	if tl, ok := l.(*net.TCPListener); ok {
		return ownListener{tl}, err
	}
	return l, err
}

// ownListener is a listener on a socket that this process made for itself. The
// filter that stops handshakes belongs to the socket, not to a descriptor: on
// one that systemd or a parent process holds it would stay, and keep everybody
// out of the server that comes next.
type ownListener struct{ *net.TCPListener }

// ListenerOptions are the options of a [Listener]. The zero value is the
// default for production.
type ListenerOptions struct {
	// MaxConns is the most connections that are open at a time, hijacked ones
	// included. One more is accepted and waits for a place; others stay in the
	// kernel's accept queue. While one waits, each HTTP response is its
	// connection's last, and a connection that has been idle for 100 ms is
	// closed, the one that has been so longest first: a newcomer does not wait
	// for an idle timeout. A connection in a request is never closed.
	//
	// What a connection does is known from a [Server]. A Listener on its own
	// only counts.
	//
	// Zero means no limit. A negative value is an error.
	MaxConns int

	// HandshakeGrace is how long a drain waits, after new handshakes have
	// been stopped, for those under way: it should exceed the round trip time
	// of the slowest client. It does not apply where handshakes cannot be
	// stopped (see [Guarantee]).
	//
	// Zero means 250 ms. A negative value is an error.
	HandshakeGrace time.Duration
}

const defaultHandshakeGrace = 250 * time.Millisecond

// cullAfter is how long a connection must have been idle to be closed for
// another, and cullNewAfter how long one that has never sent a byte. A client
// that sends one request after the other may just have sent the next, if the
// last response is younger than a round trip.
const (
	cullAfter    = time.Second
	cullNewAfter = 5 * time.Second
)

func (o ListenerOptions) validate(prefix string) error {
	if o.MaxConns < 0 {
		return fmt.Errorf("usher: %sMaxConns is %d, must not be negative", prefix, o.MaxConns)
	}
	if o.HandshakeGrace < 0 {
		return fmt.Errorf("usher: %sHandshakeGrace is %v, must not be negative", prefix, o.HandshakeGrace)
	}
	return nil
}

// A Guarantee says what a drain could do for connections that nobody had
// accepted yet.
type Guarantee int

const (
	// GuaranteeNone: the listener was closed at once, because it hides its
	// socket or the system, Windows for one, has no means; connections in its
	// accept queue were reset.
	GuaranteeNone Guarantee = iota

	// GuaranteeQueue: the accept queue was served and then the socket closed.
	// A handshake that ended between the two was reset, unless another process
	// has the socket, too. All TCP sockets that are not from [Listen] get this,
	// and all on unix systems other than Linux.
	GuaranteeQueue

	// GuaranteeAll: new handshakes were stopped first, so that each
	// connection that a client saw as established was served.
	GuaranteeAll
)

// String returns "none", "queue" or "all".
func (g Guarantee) String() string {
	switch g {
	case GuaranteeNone:
		return "none"
	case GuaranteeQueue:
		return "queue"
	case GuaranteeAll:
		return "all"
	}
	return fmt.Sprintf("Guarantee(%d)", int(g))
}

// MarshalText implements [encoding.TextMarshaler].
func (g Guarantee) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

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
	socketGone bool         // the socket has been closed
	isClosed   bool         // Close has been called
	isDrained  bool         // drained has been closed
	guarantee  Guarantee
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

// admit waits until the newcomer has a place among MaxConns connections, and
// reports false if l was closed meanwhile.
func (l *Listener) admit() bool {
	if l.opts.MaxConns == 0 {
		return true
	}
	l.mu.Lock()
	if l.seat(0) {
		l.mu.Unlock()
		return true
	}
	l.newcomers++
	l.mu.Unlock()
	l.crowd.Add(1)
	defer l.crowd.Add(-1)
	for {
		l.mu.Lock()
		seated := l.seat(1)
		if seated {
			l.newcomers--
		}
		l.mu.Unlock()
		if seated {
			l.signalRoom() // another newcomer may have a place, too
			return true
		}
		// The end of a connection that cull closed comes through room, too.
		_, wait := l.cull()
		t := time.NewTimer(wait)
		select {
		case <-l.room:
		case <-t.C:
		case <-l.closed:
			t.Stop()
			l.mu.Lock()
			l.newcomers--
			l.mu.Unlock()
			return false
		}
		t.Stop()
	}
}

// seat reports whether the newcomer who asks, one of the self newcomers, has a
// place. In a stop all have: nobody else comes. Its caller holds l.mu.
func (l *Listener) seat(self int) bool {
	return l.open-l.newcomers+self <= l.opts.MaxConns || l.stopping.Load()
}

// cull closes the connection that has been idle longest, if that is long
// enough, and reports whether it did; else it returns when to try again.
func (l *Listener) cull() (culled bool, wait time.Duration) {
	// More than one, because a request may have come in for the first.
	var candidates [8]*Conn
	n := 0
	wait = time.Minute
	l.mu.Lock()
	for c := l.head; c != nil && n < len(candidates); c = c.next {
		st := c.state.Load()
		if !quiet(st) {
			continue
		}
		after := cullAfter
		if st&phaseMask == phaseNew {
			after = cullNewAfter
		}
		if young := max(c.accepted, time.Duration(c.since.Load())) + after - l.now(); young > 0 {
			wait = min(wait, young)
			continue
		}
		candidates[n] = c
		n++
	}
	l.mu.Unlock()
	for _, c := range candidates[:n] {
		if c.retire() {
			l.mu.Lock()
			l.counts.culled++
			l.mu.Unlock()
			return true, cullAfter
		}
	}
	return false, wait
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

// signalRoom has a newcomer look for a place.
func (l *Listener) signalRoom() {
	select {
	case l.room <- struct{}{}:
	default:
	}
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

// Drain stops new connections and waits until those that the kernel has
// established are accepted; then it closes the socket, so that new connects
// are refused. It returns what it could guarantee.
//
// Somebody must keep calling [Listener.Accept] meanwhile; those calls block,
// and do not fail, until [Listener.Close]. If ctx ends first, the socket is
// closed at once, its queue is lost, and the error wraps ctx's and says how
// many connections were waiting. A second call waits for the first.
func (l *Listener) Drain(ctx context.Context) (Guarantee, error) {
	l.markStopping()
	if !l.draining.Swap(true) {
		l.beginDrain(ctx)
	}
	select {
	case <-l.drained:
		return l.drainResult(), nil
	case <-l.closed:
		return l.drainResult(), nil
	case <-ctx.Done():
	}
	queued := ""
	if n, err := l.Queued(); err == nil {
		queued = fmt.Sprintf(" with %d connections in the accept queue", n)
	}
	l.mu.Lock()
	l.guarantee = GuaranteeNone
	l.closeSocket()
	l.mu.Unlock()
	return GuaranteeNone, fmt.Errorf("usher: drain of %v cut short%s: %w", l.Addr(), queued, context.Cause(ctx))
}

// markStopping notes that a stop has begun. From here on the fate of each
// connection is counted.
func (l *Listener) markStopping() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopping.Swap(true) {
		return
	}
	l.stoppedAt = l.now()
	l.atStop = l.open
	l.signalRoom()
	// Those that become active after the Swap see it and set the flag
	// themselves.
	for c := l.head; c != nil; c = c.next {
		if c.state.Load()&phaseMask == phaseActive {
			c.state.Or(flagLate)
		}
	}
}

func (l *Listener) drainResult() Guarantee {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.guarantee
}

// beginDrain goes through the steps of Drain up to the point where the socket
// is closed as soon as its queue is empty.
func (l *Listener) beginDrain(ctx context.Context) {
	l.mu.Lock()
	below := l.below
	l.mu.Unlock()
	if below != nil {
		g, _ := below.Drain(ctx)
		l.mu.Lock()
		l.guarantee = g
		l.closeSocket()
		l.mu.Unlock()
		return
	}
	rc, err := l.SyscallConn()
	if err != nil {
		l.empty(GuaranteeNone)
		return
	}
	if ul, ok := l.inner.(*net.UnixListener); ok {
		if err := l.unpublish(ul); err != nil {
			l.log.Warn("usher: cannot take the socket's name away before its queue is served", "addr", l.Addr(), "error", err)
			l.empty(GuaranteeQueue)
			return
		}
		// A connect is one step: who found the name is in the queue by now.
		l.empty(GuaranteeAll)
		return
	}
	if _, own := l.inner.(ownListener); !own {
		l.log.Info("usher: new handshakes are not stopped: the socket is not from usher.Listen", "addr", l.Addr())
		l.empty(GuaranteeQueue)
		return
	}
	if err := gate.Shut(rc); err != nil {
		l.log.Warn("usher: new handshakes cannot be stopped; one that ends while the listener is closed is lost", "addr", l.Addr(), "error", err)
		l.empty(GuaranteeQueue)
		return
	}
	t := time.NewTimer(l.opts.HandshakeGrace)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-l.closed:
	}
	l.empty(GuaranteeAll)
}

// unpublish removes the name of a unix socket. An Accept under way fails for
// it; l.mu keeps that from being seen before the heir is in place.
func (l *Listener) unpublish(ul *net.UnixListener) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.socketGone {
		return nil
	}
	heir, err := gate.Unpublish(ul)
	if err != nil {
		return err
	}
	l.socket = heir
	return nil
}

// empty has the socket closed as soon as its queue is empty.
func (l *Listener) empty(g Guarantee) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.guarantee = g
	l.emptying = true
	l.closeIfEmpty()
	l.noteDrained()
}

// Queued returns the number of connections in the kernel's accept queue. Only
// TCP on Linux tells the number; elsewhere 1 stands for one or more. The error
// wraps [errors.ErrUnsupported] where nothing is known.
func (l *Listener) Queued() (int, error) {
	rc, err := l.SyscallConn()
	if err != nil {
		return 0, err
	}
	return gate.Queued(rc)
}

// closeIfEmpty closes the socket if that is wanted and nobody waits in its
// queue. It is called before each accept, so that the moment between the last
// look and the close is as short as can be. Its caller holds l.mu.
func (l *Listener) closeIfEmpty() {
	if !l.emptying || l.socketGone {
		return
	}
	if l.guarantee > GuaranteeNone {
		sc, ok := l.socket.(syscall.Conn)
		if !ok {
			l.guarantee = GuaranteeNone
		} else if rc, err := sc.SyscallConn(); err != nil {
			l.guarantee = GuaranteeNone
		} else if n, err := gate.Queued(rc); err != nil {
			l.guarantee = GuaranteeNone
		} else if n > 0 {
			return
		}
	}
	l.closeSocket()
}

// closeSocket closes the socket without waiting: a foreign listener's Close
// may block. Its caller holds l.mu.
func (l *Listener) closeSocket() error {
	if l.socketGone {
		return nil
	}
	l.socketGone = true
	defer l.noteDrained()
	switch l.socket.(type) {
	case ownListener, *net.TCPListener, *net.UnixListener:
		return l.socket.Close()
	}
	socket := l.socket
	go func() {
		if err := socket.Close(); err != nil {
			l.log.Warn("usher: close of the listener failed", "addr", l.Addr(), "error", err)
		}
	}()
	return nil
}

// noteDrained closes l.drained when the socket is closed and every connection
// that came from it is counted. Its caller holds l.mu.
func (l *Listener) noteDrained() {
	if l.socketGone && l.accepting == 0 && !l.isDrained {
		l.isDrained = true
		close(l.drained)
	}
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
