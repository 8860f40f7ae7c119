package usher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/gate"
	"github.com/seed-235859eb/usher/internal/supervised"
	"github.com/seed-235859eb/usher/internal/track"
)

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
	l.conns.BeginStop()
	l.conns.Want(track.Left | track.Quiet | track.Detached)
	l.signalRoom() // in a stop all newcomers have a place
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
	if sv, ok := l.inner.(supervised.Listener); ok {
		l.finish(ctx, sv)
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
	l.awaitHandshakes(ctx)
	l.empty(GuaranteeAll)
}

// awaitHandshakes waits for HandshakeGrace.
func (l *Listener) awaitHandshakes(ctx context.Context) {
	t := time.NewTimer(l.opts.HandshakeGrace)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-l.closed:
	}
}

// finish has a supervised listener empty and close its sockets.
func (l *Listener) finish(ctx context.Context, sv supervised.Listener) {
	guarantee := GuaranteeAll
	switch err := sv.Shut(); {
	case err == nil:
		l.awaitHandshakes(ctx)
	case errors.Is(err, supervised.ErrForeign):
		l.log.Info("usher: new handshakes are not stopped: the socket is not this program's alone", "addr", l.Addr())
		guarantee = GuaranteeQueue
	case !errors.Is(err, supervised.ErrShared):
		l.log.Warn("usher: new handshakes cannot be stopped; one that ends while the listener is closed is lost", "addr", l.Addr(), "error", err)
		guarantee = GuaranteeQueue
	}
	l.mu.Lock()
	l.guarantee = guarantee
	l.finishing = true
	l.mu.Unlock()
	sv.Finish()
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
	if sv, ok := l.inner.(supervised.Listener); ok {
		return sv.Queued()
	}
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
