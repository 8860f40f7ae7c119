package usher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
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
	// has the socket, too. All TCP sockets that are neither from [Listen] nor
	// Exclusive (see [ListenerOptions]) get this, and where the kernel has no
	// [Gate] the others, too.
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

// A Gate is what stopped new handshakes in a drain.
type Gate string

const (
	// GateInterface: the socket was tied to a network interface that does not
	// exist. Newcomers were refused at once.
	GateInterface = Gate(gate.Interface)

	// GateFilter: a socket filter dropped requests for connections. Newcomers
	// send theirs again, after a second on most systems.
	GateFilter = Gate(gate.Filter)

	// GateName: the name of the unix socket was removed.
	GateName = Gate(gate.Name)

	// GateSiblings: nothing, as other processes go on with the sockets.
	GateSiblings Gate = "siblings"

	// GateNone: nothing.
	GateNone = Gate(gate.None)
)

// A gateResult is what a drain could do.
type gateResult struct {
	guarantee Guarantee
	gate      Gate
	reason    string // why there was no better gate
}

// weaker returns the one that promises less; of equals, one with a reason.
func (r gateResult) weaker(other gateResult) gateResult {
	if other.guarantee < r.guarantee || other.guarantee == r.guarantee && r.reason == "" {
		return other
	}
	return r
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
	l.shutGate(ctx)
	select {
	case <-l.drained:
		return l.gateResult().guarantee, nil
	case <-l.closed:
		return l.gateResult().guarantee, nil
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

func (l *Listener) gateResult() gateResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	return gateResult{l.guarantee, l.gate, l.gateReason}
}

// shutGate goes through the steps of Drain up to the point where the socket is
// closed as soon as its queue is empty. A second call does nothing.
func (l *Listener) shutGate(ctx context.Context) {
	if l.draining.Swap(true) {
		return
	}
	l.mu.Lock()
	below := l.below
	l.mu.Unlock()
	if below != nil {
		g, _ := below.Drain(ctx)
		r := below.gateResult()
		l.mu.Lock()
		l.guarantee, l.gate, l.gateReason = g, r.gate, r.reason
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
		l.empty(l.ungated(GuaranteeNone, err.Error()))
		return
	}
	if ul, ok := l.inner.(*net.UnixListener); ok {
		if err := l.unpublish(ul); err != nil {
			l.empty(l.ungated(GuaranteeQueue, err.Error()))
			return
		}
		// A connect is one step: who found the name is in the queue by now.
		l.empty(gateResult{GuaranteeAll, GateName, ""})
		return
	}
	if _, own := l.inner.(ownListener); !own && !l.opts.Exclusive {
		l.empty(l.ungated(GuaranteeQueue, "the socket is neither from usher.Listen nor Exclusive"))
		return
	}
	l.empty(l.awaitGate(ctx, gate.Shut(rc), func() (gate.Pending, error) { return gate.Handshakes(rc) }))
}

// ungated says that new handshakes are not stopped.
func (l *Listener) ungated(g Guarantee, reason string) gateResult {
	l.log.Info("usher: new handshakes are not stopped; one that ends while the listener is closed is lost", "addr", l.Addr(), "reason", reason)
	return gateResult{g, GateNone, reason}
}

// awaitGate waits, if new handshakes have been stopped, for those under way.
func (l *Listener) awaitGate(ctx context.Context, out gate.Outcome, look func() (gate.Pending, error)) gateResult {
	reason := ""
	if out.Refused != nil {
		reason = strings.ReplaceAll(out.Refused.Error(), "\n", "; ")
	}
	switch out.Mechanism {
	case gate.None:
		return l.ungated(GuaranteeQueue, reason)
	case gate.Filter:
		l.log.Info("usher: new handshakes are dropped, not refused: clients wait for a second", "addr", l.Addr(), "reason", reason)
	case gate.Name:
		return gateResult{GuaranteeAll, GateName, reason}
	}
	if open := l.awaitHandshakes(ctx, look); open > 0 {
		// Until these are shut too, the kernel goes on giving us connections.
		return l.ungated(GuaranteeQueue, fmt.Sprintf("%d other sockets of the SO_REUSEPORT group go on", open))
	}
	return gateResult{GuaranteeAll, Gate(out.Mechanism), reason}
}

// nextLook is how soon the kernel is asked again for handshakes under way: long
// enough for it to take in a packet that was at its door the last time.
const nextLook = 5 * time.Millisecond

// awaitHandshakes waits until two looks in succession find nothing under way,
// or for HandshakeGrace, which is also what it waits if there is no looking. It
// returns how many other sockets of the group were open to newcomers in the end.
func (l *Listener) awaitHandshakes(ctx context.Context, look func() (gate.Pending, error)) (open int) {
	grace := time.NewTimer(l.opts.HandshakeGrace)
	defer grace.Stop()
	next := time.NewTimer(0)
	defer next.Stop()
	for quiet := 0; ; {
		select {
		case <-next.C:
			began := time.Now()
			p, err := look()
			if err != nil {
				l.log.Debug("usher: handshakes under way cannot be counted: waiting for HandshakeGrace", "addr", l.Addr(), "error", err)
				continue // and look no more
			}
			if quiet++; p != (gate.Pending{}) {
				quiet = 0
			}
			if open = p.Open; quiet == 2 {
				return 0
			}
			// On a machine with very many connections a look takes its time.
			next.Reset(max(nextLook, time.Since(began)))
		case <-grace.C:
			return open
		case <-ctx.Done():
			return open
		case <-l.closed:
			return open
		}
	}
}

// finish has a supervised listener empty and close its sockets.
func (l *Listener) finish(ctx context.Context, sv supervised.Listener) {
	var r gateResult
	switch out, err := sv.Shut(); {
	case err == nil:
		r = l.awaitGate(ctx, out, sv.Handshakes)
	case errors.Is(err, supervised.ErrShared):
		r = gateResult{GuaranteeAll, GateSiblings, ""}
	case errors.Is(err, supervised.ErrForeign):
		r = l.ungated(GuaranteeQueue, "the socket is not this program's alone")
	default:
		r = l.ungated(GuaranteeQueue, err.Error())
	}
	l.mu.Lock()
	l.guarantee, l.gate, l.gateReason = r.guarantee, r.gate, r.reason
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
func (l *Listener) empty(r gateResult) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.guarantee, l.gate, l.gateReason = r.guarantee, r.gate, r.reason
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
