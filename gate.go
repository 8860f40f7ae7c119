package usher

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/seed-235859eb/usher/internal/gate"
	"github.com/seed-235859eb/usher/internal/supervised"
	"github.com/seed-235859eb/usher/internal/track"
)

// A Guarantee says what became, in a drain, of connections that nobody had accepted
// yet. A higher value promises more.
type Guarantee int

const (
	// GuaranteeNone: the listener was closed at once, and connections in its
	// accept queue were reset. The listener hides its socket, or the system has no
	// means (Windows), or the stop had no time.
	GuaranteeNone Guarantee = iota

	// GuaranteeQueue: the accept queue was served, and then the socket closed. A
	// handshake that ended between the two was reset, unless another process has
	// the socket, too. This is what TCP sockets get that are neither from [Listen]
	// nor Exclusive (see [ListenerOptions]), and all where the kernel has no
	// [Gate].
	GuaranteeQueue

	// GuaranteeAll: new handshakes were stopped first. Each connection that a
	// client saw as established was served.
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

// A Gate is what stopped new handshakes in a drain. Its value is one lower-case
// word.
type Gate string

const (
	// GateInterface: the socket was tied to a network interface that does not
	// exist. New connects were refused at once.
	GateInterface = Gate(gate.Interface)

	// GateFilter: a socket filter dropped the packets that begin a handshake.
	// Clients send them again after a second on most systems.
	GateFilter = Gate(gate.Filter)

	// GateName: the name of the unix socket was removed, so that new connects
	// found no socket.
	GateName = Gate(gate.Name)

	// GateSiblings: nothing stopped them, and nothing needed to: other worker
	// processes go on with the sockets.
	GateSiblings Gate = "siblings"

	// GateNone: nothing stopped them.
	GateNone = Gate(gate.None)
)

// Drain stops new handshakes, waits until each connection in the accept queue is
// accepted, and closes the socket. After that new connects are refused. Drain
// returns what it could guarantee.
//
// Somebody must keep calling [Listener.Accept] meanwhile. Those calls block, and do
// not fail, until [Listener.Close]. If ctx ends first, the socket is closed at
// once and its accept queue is lost: the error wraps that of ctx, and says how many
// connections were in the queue. A second call waits for the first.
func (l *Listener) Drain(ctx context.Context) (Guarantee, error) {
	l.markStopping()
	first := false
	l.drainOnce.Do(func() { first = true })
	if first {
		l.shutGate(ctx)
		close(l.gateShut)
	}
	select {
	case <-l.drained():
		return l.result().guarantee(), nil
	case <-l.closed:
		return l.result().guarantee(), nil
	case <-ctx.Done():
	}
	queued := ""
	if n, err := l.Queued(); err == nil {
		queued = fmt.Sprintf(" with %d connections in the accept queue", n)
	}
	if first {
		l.closeSocket()
	}
	return GuaranteeNone, fmt.Errorf("usher: drain of %v cut short%s: %w", l.Addr(), queued, context.Cause(ctx))
}

// drained returns a channel that is closed when the socket is, and each
// connection that came from it is counted.
func (l *Listener) drained() <-chan struct{} {
	if below := l.under(); below != nil {
		return below.drained()
	}
	return l.socket.Done()
}

// closeSocket closes the socket with what its queue holds.
func (l *Listener) closeSocket() {
	if below := l.under(); below != nil {
		below.closeSocket()
	}
	l.socket.Close()
}

// markStopping notes that a stop has begun. From here on the fate of each
// connection is counted.
func (l *Listener) markStopping() {
	l.conns.BeginStop()
	l.conns.Want(track.Left | track.Quiet | track.Detached)
	l.limit.Recheck() // in a stop all newcomers have a place
	if below := l.under(); below != nil {
		below.markStopping()
	}
}

// A drainResult is what a drain could do.
type drainResult struct{ gate.Result }

func (r drainResult) guarantee() Guarantee { return Guarantee(r.Guarantee) }

// result returns what the drain has come to.
func (l *Listener) result() drainResult {
	if below := l.under(); below != nil {
		return below.result()
	}
	return drainResult{l.socket.Result()}
}

// shutGate goes through the steps of Drain up to the point where the socket is
// closed as soon as its queue is empty.
func (l *Listener) shutGate(ctx context.Context) {
	if below := l.under(); below != nil {
		below.drainOnce.Do(func() {
			below.shutGate(ctx)
			close(below.gateShut)
		})
		return
	}
	if sv, ok := l.inner.(supervised.Listener); ok {
		l.socket.Finish(l.logged(l.shutSupervised(ctx, sv)))
		sv.Finish()
		return
	}
	l.socket.Empty(l.logged(l.shutSocket(ctx)))
}

// expects returns the guarantee that a drain will come to if the kernel has the
// means.
func (l *Listener) expects() Guarantee {
	if below := l.under(); below != nil {
		return below.expects()
	}
	if _, ok := l.inner.(supervised.Listener); ok {
		return bestGuarantee
	}
	if _, err := l.socket.SyscallConn(); err != nil {
		return GuaranteeNone
	}
	switch l.inner.(type) {
	case ownListener, *net.UnixListener:
		return bestGuarantee
	}
	if l.opts.Exclusive {
		return bestGuarantee
	}
	return min(bestGuarantee, GuaranteeQueue)
}

// logged says so if new handshakes are not stopped, or not well.
func (l *Listener) logged(r gate.Result) gate.Result {
	switch {
	case r.Guarantee < gate.GuaranteeAll:
		l.log.Info("usher: new handshakes are not stopped; one that ends while the listener is closed is lost", "addr", l.Addr(), "reason", r.Reason)
	case r.Mechanism == gate.Filter:
		l.log.Info("usher: new handshakes were dropped, not refused: clients wait for a second", "addr", l.Addr(), "reason", r.Reason)
	}
	return r
}

func (l *Listener) shutSocket(ctx context.Context) gate.Result {
	rc, err := l.socket.SyscallConn()
	if err != nil {
		return gate.Result{Guarantee: gate.GuaranteeNone, Mechanism: gate.None, Reason: err.Error()}
	}
	if _, ok := l.inner.(*net.UnixListener); ok {
		return l.socket.RemoveName()
	}
	if _, own := l.inner.(ownListener); !own && !l.opts.Exclusive {
		return gate.Ungated("the socket is neither from usher.Listen nor Exclusive")
	}
	return l.await(ctx, gate.Shut(rc), func() (gate.Pending, error) { return gate.Handshakes(rc) })
}

// shutSupervised asks the supervisor of this process to stop handshakes.
func (l *Listener) shutSupervised(ctx context.Context, sv supervised.Listener) gate.Result {
	switch out, err := sv.Shut(); {
	case err == nil:
		return l.await(ctx, out, sv.Handshakes)
	case errors.Is(err, supervised.ErrShared):
		return gate.Result{Guarantee: gate.GuaranteeAll, Mechanism: gate.Mechanism(GateSiblings)}
	case errors.Is(err, supervised.ErrForeign):
		return gate.Ungated("the socket is not this program's alone")
	default:
		return gate.Ungated(err.Error())
	}
}

// await waits for handshakes under way, until the Listener is closed.
func (l *Listener) await(ctx context.Context, out gate.Outcome, look func() (gate.Pending, error)) gate.Result {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-l.closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return gate.Await(ctx, out, look, l.opts.HandshakeGrace)
}

// Queued returns the number of connections in the kernel's accept queue. The
// number is exact for TCP on Linux; elsewhere 1 stands for one or more. The error
// wraps [errors.ErrUnsupported] where nothing is known.
func (l *Listener) Queued() (int, error) {
	if sv, ok := l.inner.(supervised.Listener); ok {
		return sv.Queued()
	}
	if below := l.under(); below != nil {
		return below.Queued()
	}
	return l.socket.Queued()
}
