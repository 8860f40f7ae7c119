package usher

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"time"
)

// ShutdownOptions say how long a stop waits, and for what. The zero value is
// the default for production.
type ShutdownOptions struct {
	// Delay is the lame duck: for so long after the stop began, readiness
	// fails and everything else goes on, for load balancers that learn late.
	// Zero means none. A negative value is an error.
	Delay time.Duration

	// IdleGrace is how long a connection may stay silent, from the drain's
	// beginning or from its last response on, before it is closed. Only an
	// answer retires an HTTP/1 connection without a race: who speaks within
	// IdleGrace gets one.
	//
	// Of a client that sends its requests at random moments, at a rate of its
	// own, and has a round trip of R, at most R/(e·IdleGrace) requests are
	// lost: with 5 s and 1 ms, one stop in 13,000.
	//
	// Zero means 5 s, or a fifth of GracePeriod if that is less. A stop that
	// has less than twice IdleGrace left, after Delay or by its context, makes
	// do with half of what it has. A negative value, or one not less than
	// GracePeriod, is an error.
	IdleGrace time.Duration

	// GracePeriod is how long a stop may take in all. What has not ended by
	// then is cut; hooks get a tenth more. Zero means 25 s, as Heroku and
	// Kubernetes kill after 30 s. A negative value is an error.
	GracePeriod time.Duration
}

const (
	defaultGracePeriod = 25 * time.Second
	defaultIdleGrace   = 5 * time.Second
)

func (o ShutdownOptions) validate() error {
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"Delay", o.Delay}, {"IdleGrace", o.IdleGrace}, {"GracePeriod", o.GracePeriod}} {
		if f.value < 0 {
			return fmt.Errorf("usher: Options.Shutdown.%s is %v, must not be negative", f.name, f.value)
		}
	}
	if d := o.withDefaults(); d.IdleGrace >= d.GracePeriod {
		return fmt.Errorf("usher: Options.Shutdown.IdleGrace is %v, must be less than GracePeriod, which is %v", d.IdleGrace, d.GracePeriod)
	}
	return nil
}

func (o ShutdownOptions) withDefaults() ShutdownOptions {
	if o.GracePeriod == 0 {
		o.GracePeriod = defaultGracePeriod
	}
	if o.IdleGrace == 0 {
		o.IdleGrace = min(defaultIdleGrace, o.GracePeriod/5)
	}
	return o
}

// A Phase is a stretch of a server's life.
type Phase int32

// The phases, in their order.
const (
	PhaseStarting    Phase = iota // no method that serves has been called
	PhaseServing                  // business as usual
	PhaseLameDuck                 // readiness fails, all else goes on
	PhaseGate                     // no new handshakes; those under way end
	PhaseAcceptQueue              // what the kernel has established is accepted
	PhaseDrain                    // connections leave, answered or, when silent, closed
	PhaseFinish                   // HTTP/2 gets its GOAWAY, hijacked connections end, hooks run
	PhaseHard                     // time is up: contexts are cancelled, connections cut
	PhaseStopped
)

var phaseNames = [...]string{"starting", "serving", "lame duck", "gate", "accept queue", "drain", "finish", "hard", "stopped"}

// String returns the phase's name in lower case.
func (p Phase) String() string {
	if p < 0 || int(p) >= len(phaseNames) {
		return fmt.Sprintf("Phase(%d)", int(p))
	}
	return phaseNames[p]
}

// MarshalText implements [encoding.TextMarshaler].
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// Phase returns where the server is in its life.
func (s *Server) Phase() Phase { return Phase(s.phase.Load()) }

// setPhase moves on to p. Its caller holds s.mu.
func (s *Server) setPhase(p Phase) {
	s.phase.Store(int32(p))
	s.phaseSince = time.Now()
}

func (s *Server) enterPhase(p Phase) {
	s.mu.Lock()
	s.setPhase(p)
	s.mu.Unlock()
}

// ErrShuttingDown is the cause of a request's context that was cancelled
// because GracePeriod was over: see [context.Cause].
var ErrShuttingDown = errors.New("usher: shutting down")

var (
	errGraceOver = errors.New("GracePeriod is over")
	errEndNow    = errors.New("a third signal arrived")
)

// A ShutdownError tells how a stop fell short.
type ShutdownError struct {
	Phase  Phase  // where it was when its time ended; PhaseFinish if only hooks failed
	Report Report // of what was left then and what was cut
	Err    error  // why
}

// Error returns one line.
func (e *ShutdownError) Error() string {
	left := ""
	if e.Report.Cut > 0 {
		left = fmt.Sprintf(", %d of %d connections cut", e.Report.Cut, e.Report.Open+e.Report.Queued)
	}
	return fmt.Sprintf("usher: shutdown fell short in phase %q%s: %v", e.Phase, left, e.Err)
}

// Unwrap returns Err.
func (e *ShutdownError) Unwrap() error { return e.Err }

// Shutdown stops the server without losing a request: it goes through the
// phases that the package documentation describes and returns when the last
// connection has left, hijacked ones included, and the hooks have run.
//
// The first call sets the terms. Its context bounds the stop, beside
// GracePeriod: when either ends, what is left is cut. If the context has a
// deadline, that happens a tenth before it, so that cut requests and hooks
// still get a little time. Further calls wait for the same stop, as long as
// their own context lasts.
//
// Shutdown returns by the end of ctx, whatever handlers, hooks and listeners
// do, with nil or a [*ShutdownError]. Called with the context of one of
// the server's own requests, it begins the stop and returns nil at once, as
// it would wait for its caller otherwise.
func (s *Server) Shutdown(ctx context.Context) error {
	if own, ok := ctx.Value(serverKey{}).(*Server); ok && own == s {
		s.beginStop(context.WithoutCancel(ctx), stopCause{reason: "Shutdown called by a handler"})
		return nil
	}
	s.beginStop(ctx, stopCause{reason: "Shutdown called"})
	select {
	case <-s.done:
	case <-ctx.Done():
		select {
		case <-s.done:
		default:
			return &ShutdownError{Phase: s.Phase(), Report: s.countFates(), Err: context.Cause(ctx)}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result
}

// Close ends everything at once: listeners, connections, hijacked ones too,
// and a stop under way. Requests are lost and hooks do not run. Serve returns
// [http.ErrServerClosed]. Close does not wait for handlers.
func (s *Server) Close() error {
	if s.beginStop(context.Background(), stopCause{reason: "Close called", close: true}) {
		<-s.done
		return nil
	}
	s.mu.Lock()
	s.end(http.ErrServerClosed)
	s.mu.Unlock()
	<-s.done
	return nil
}

// OnShutdown registers f to be called at the end of a stop, when no connection
// is left. Hooks run one after the other in the order of registration, each
// with a context for its share of what is left of GracePeriod (at least of a
// tenth of it). An error, a panic, and not returning in time are
// reported under name and do not keep the next hook from running. A hook
// that ignores the end of its context is left behind.
func (s *Server) OnShutdown(name string, f func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f == nil {
		s.err = errors.Join(s.err, fmt.Errorf("usher: OnShutdown: hook %q is nil", name))
		return
	}
	s.hooks = append(s.hooks, hook{name, f})
}

// RegisterOnShutdown registers f to be called in a goroutine of its own when
// the drain begins, for programs that tell their long-lived connections that
// way. Those that are registered with the http.Server run in the finish phase,
// when the connections that they should end have been waited for: move them
// here. As with net/http, nobody waits for f.
func (s *Server) RegisterOnShutdown(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onDrain = append(s.onDrain, f)
}

type hook struct {
	name string
	f    func(context.Context) error
}

// stopCause says why a stop begins.
type stopCause struct {
	reason   string
	quick    bool // skip Delay and IdleGrace
	bypassed bool // somebody called Shutdown or Close of net/http
	close    bool // Close
}

// beginStop starts the one stop of s's life, and reports whether it did.
func (s *Server) beginStop(ctx context.Context, cause stopCause) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.stopping = true
	if cause.close {
		s.end(http.ErrServerClosed)
	}
	if s.http == nil || s.strays == nil { // Wrap has found fault
		s.result = s.err
		s.setPhase(PhaseStopped)
		close(s.done)
		return true
	}
	if s.opts.Shutdown.Delay > 0 && !cause.quick && !cause.bypassed && !cause.close {
		s.setPhase(PhaseLameDuck)
	} else {
		s.setPhase(PhaseGate)
	}
	go s.stop(ctx, cause)
	return true
}

// cutLameDuck ends the lame duck.
func (s *Server) cutLameDuck(why string) {
	s.log.Info("usher: second signal: no more delay; a third ends everything at once", "signal", why, "phase", s.Phase().String())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hurried {
		return
	}
	s.hurried = true
	close(s.hurry)
}

// endNow has the stop cut what is left.
func (s *Server) endNow(why string) {
	s.log.Warn("usher: signal ends everything at once", "signal", why)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(errEndNow)
}

// end closes s.now. Its caller holds s.mu.
func (s *Server) end(cause error) {
	if s.ended {
		return
	}
	s.ended = true
	s.endCause = cause
	close(s.now)
}

// noteBypass is called when net/http's own Shutdown runs, or Serve has found
// that its Close did.
func (s *Server) noteBypass() {
	s.mu.Lock()
	ours := s.formality
	s.mu.Unlock()
	if ours {
		return
	}
	s.log.Warn("usher: Shutdown or Close of the http.Server was called directly: requests are lost; call those of usher.Server")
	s.beginStop(context.Background(), stopCause{reason: "http.Server stopped directly", bypassed: true})
}

// stop runs the phases. It is the one goroutine that a stop has, and closes
// s.done.
func (s *Server) stop(parent context.Context, cause stopCause) {
	began := time.Now()
	grace := s.opts.Shutdown.GracePeriod
	if deadline, ok := parent.Deadline(); ok {
		grace = min(grace, time.Until(deadline)*9/10)
	}
	ctx, cancel := context.WithTimeoutCause(parent, grace, errGraceOver)
	defer cancel()
	ctx, cancelNow := context.WithCancelCause(ctx)
	defer cancelNow(nil)
	go func() {
		select {
		case <-s.now:
			s.mu.Lock()
			defer s.mu.Unlock()
			cancelNow(s.endCause)
		case <-ctx.Done():
		}
	}()
	s.log.Info("usher: stopping", "reason", cause.reason, "grace", grace)

	s.lameDuck(ctx)
	s.enterPhase(PhaseGate)
	s.beginDrain()
	closed := make(chan Guarantee, 1)
	go func() { closed <- s.closeListeners(ctx, cause) }()
	guarantee := s.drain(ctx, cause, closed)
	if ctx.Err() == nil {
		s.enterPhase(PhaseFinish)
		s.finish(ctx, cause)
	}
	reached := s.Phase()
	var failed error
	if reached < PhaseFinish || !s.empty(cause) {
		failed = context.Cause(ctx)
		s.enterPhase(PhaseHard)
		s.cutAll(parent, grace, cause)
	}
	failed = errors.Join(failed, s.runHooks(latest(began.Add(grace), time.Now().Add(grace/10))))
	s.conclude(began, cause, guarantee, reached, failed)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// lameDuck waits for Delay.
func (s *Server) lameDuck(ctx context.Context) {
	if s.Phase() != PhaseLameDuck {
		return
	}
	t := time.NewTimer(s.opts.Shutdown.Delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.hurry:
	case <-ctx.Done():
	}
}

// beginDrain tells everybody that the drain begins.
func (s *Server) beginDrain() {
	close(s.draining)
	s.mu.Lock()
	onDrain := s.onDrain
	listeners := slices.Clone(s.listeners)
	s.mu.Unlock()
	for _, l := range listeners {
		l.markStopping()
	}
	for _, f := range onDrain {
		go f()
	}
}

// closeListeners goes through the gate and empties the accept queues, and
// returns the weakest guarantee of all listeners.
func (s *Server) closeListeners(ctx context.Context, cause stopCause) Guarantee {
	s.mu.Lock()
	listeners := slices.Clone(s.listeners)
	s.mu.Unlock()
	if cause.bypassed || cause.close {
		for _, l := range listeners {
			l.Close()
		}
		return GuaranteeNone
	}
	type result struct {
		g   Guarantee
		err error
	}
	results := make(chan result)
	n := 0
	for _, l := range listeners {
		if l == s.strays {
			continue
		}
		n++
		go func() {
			g, err := l.Drain(ctx)
			results <- result{g, err}
		}()
	}
	gate := time.NewTimer(s.opts.Listener.HandshakeGrace)
	defer gate.Stop()
	weakest := GuaranteeAll
	for n > 0 {
		select {
		case r := <-results:
			n--
			weakest = min(weakest, r.g)
			if r.err != nil {
				s.log.Warn("usher: accept queue not served", "error", r.err)
			}
		case <-gate.C:
			s.enterPhase(PhaseAcceptQueue)
		}
	}
	return weakest
}

// open returns the number of open connections, and how many of those leave in
// the drain: all but HTTP/2, which net/http ends with a GOAWAY, and the
// hijacked ones.
func (s *Server) open() (all, leaving int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		l.mu.Lock()
		all += l.open
		leaving += l.open - l.aside
		l.mu.Unlock()
	}
	return all, leaving
}

// eachConn calls f for each open connection, without a lock.
func (s *Server) eachConn(f func(*Conn)) {
	s.mu.Lock()
	listeners := slices.Clone(s.listeners)
	s.mu.Unlock()
	for _, l := range listeners {
		for _, c := range l.conns() {
			f(c)
		}
	}
}

// empty reports whether all connections have left that a stop waits for. One
// that came about behind usher's back does not wait for hijacked ones, as
// net/http does not.
func (s *Server) empty(cause stopCause) bool {
	if !cause.bypassed {
		all, _ := s.open()
		return all == 0
	}
	empty := true
	s.eachConn(func(c *Conn) { empty = empty && c.state.Load()&phaseMask == phaseHijacked })
	return empty
}

// http2Settle is how long an HTTP/2 connection without a stream is left alone
// in the drain: a request may follow its preface or its last response. The
// GOAWAY that net/http sends says that a later one was not processed.
const http2Settle = 100 * time.Millisecond

// drain waits until the listeners are closed and all HTTP/1 connections have
// left, and closes those that are silent for too long. It returns what comes
// from closed.
func (s *Server) drain(ctx context.Context, cause stopCause, closed <-chan Guarantee) (g Guarantee) {
	grace, settle := s.opts.Shutdown.IdleGrace, http2Settle
	if deadline, ok := ctx.Deadline(); ok {
		// What is closed for its silence must not be cut for it.
		grace = min(grace, time.Until(deadline)/2)
	}
	if cause.quick {
		grace, settle = 0, 0
	}
	idle, http2 := time.NewTimer(0), time.NewTimer(time.Hour)
	defer idle.Stop()
	defer http2.Stop()
	for {
		if closed == nil {
			if _, leaving := s.open(); leaving == 0 {
				wait := s.unsettled(settle, grace)
				if wait <= 0 {
					return g
				}
				http2.Reset(wait)
			}
		}
		select {
		case g = <-closed:
			closed = nil
			if ctx.Err() == nil {
				s.enterPhase(PhaseDrain)
			}
		case <-idle.C:
			// A connection that is busy now is due in grace at the earliest.
			idle.Reset(s.retireDue(ctx, grace))
		case <-http2.C:
		case <-s.nudge:
			if grace == 0 {
				s.retireDue(ctx, 0)
			}
		case <-ctx.Done():
			if closed != nil {
				g = <-closed // ctx ends it, too
			}
			return g
		}
	}
}

// unsettled returns how long HTTP/2 connections are still to be left alone:
// settle after the last stream, and grace for those that stop in their preface.
func (s *Server) unsettled(settle, grace time.Duration) time.Duration {
	var longest time.Duration
	s.eachConn(func(c *Conn) {
		st := c.state.Load()
		if st&flagHTTP2 == 0 || st&flagClosed != 0 {
			return
		}
		switch st & phaseMask {
		case phaseNew:
			// Its preface has begun, and net/http would not find it yet for
			// its GOAWAY (golang/go#81154).
			if c.silentSince()+grace > c.l.now() {
				longest = max(longest, http2Settle)
			}
		case phaseIdle:
			wait := c.silentSince() + settle - c.l.now()
			if wait <= 0 && settle > 0 && (!quiet(st) || c.unread()) {
				wait = settle // something has come in just now
			}
			longest = max(longest, wait)
		}
	})
	return longest
}

// spread bounds how far apart the closes of silent connections are, so that
// their clients do not all come back in the same moment.
const spread = time.Millisecond

// retireDue closes the connections that have been silent for grace, and
// returns when to look again.
func (s *Server) retireDue(ctx context.Context, grace time.Duration) time.Duration {
	next := grace
	if grace == 0 {
		next = time.Second // for the rare one that could not be closed just then
	}
	var due []*Conn
	s.eachConn(func(c *Conn) {
		st := c.state.Load()
		if !quiet(st) || st&flagHTTP2 != 0 {
			return
		}
		if wait := c.silentSince() + grace - c.l.now(); wait <= 0 {
			due = append(due, c)
		} else {
			next = min(next, wait)
		}
	})
	if len(due) == 0 {
		return next
	}
	pace := min(spread, grace/10/time.Duration(len(due)))
	began := time.Now()
	for i, c := range due {
		if wait := time.Duration(i)*pace - time.Since(began); wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return next
			}
		}
		c.retire()
	}
	return min(next, spread)
}

// finish calls net/http's Shutdown, which by now only has HTTP/2 connections
// to say goodbye to, and waits until all connections have left.
func (s *Server) finish(ctx context.Context, cause stopCause) {
	s.mu.Lock()
	s.formality = true
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		// Its error is a listener's, and Listener logs that, or ctx's.
		s.http.Shutdown(ctx)
	}()
	for !s.empty(cause) {
		select {
		case <-s.nudge:
		case <-ctx.Done():
			return
		}
	}
	// It polls; there is nothing left to poll for.
	cancel()
	<-returned
}

// cutAll ends what is left: it cancels the requests, gives their handlers a
// moment to say so, and closes all connections.
func (s *Server) cutAll(parent context.Context, grace time.Duration, cause stopCause) {
	s.mu.Lock()
	s.formality = true
	cancels := s.cancels
	cutNow := s.ended
	listeners := slices.Clone(s.listeners)
	s.mu.Unlock()
	for _, cancel := range cancels {
		cancel(ErrShuttingDown)
	}
	if !cutNow {
		s.waitEmpty(parent, min(grace/50, 500*time.Millisecond), cause)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for _, l := range listeners {
			l.Close()
		}
		s.eachConn((*Conn).cut)
		s.http.Close()
	}()
	// A connection that is not the kernel's may hang in its Close.
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-closed:
	case <-t.C:
		s.log.Warn("usher: close of a connection or listener hangs")
	}
	s.waitEmpty(parent, time.Second, cause)
}

// waitEmpty waits until no connection is open, for d at most.
func (s *Server) waitEmpty(ctx context.Context, d time.Duration, cause stopCause) {
	t := time.NewTimer(d)
	defer t.Stop()
	for !s.empty(cause) {
		select {
		case <-s.nudge:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// runHooks calls the hooks in order, each with its share of what is left until
// deadline. A Shutdown whose context ended does not wait for them, but they
// run all the same, so that none meets the next before its time; Close and the
// third signal end that.
func (s *Server) runHooks(deadline time.Time) error {
	s.mu.Lock()
	hooks := slices.Clone(s.hooks)
	s.mu.Unlock()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.now:
			cancel(errEndNow)
		case <-stop:
		}
	}()
	var failed error
	for i, h := range hooks {
		select {
		case <-s.now:
			return errors.Join(failed, fmt.Errorf("hook %q: not run", h.name))
		default:
		}
		if err := h.run(ctx, time.Until(deadline)/time.Duration(len(hooks)-i)); err != nil {
			failed = errors.Join(failed, fmt.Errorf("hook %q: %w", h.name, err))
		}
	}
	return failed
}

// run calls the hook and waits for it, for share at most.
func (h hook) run(ctx context.Context, share time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, share)
	defer cancel()
	returned := make(chan error, 1)
	go func() {
		defer func() {
			if v := recover(); v != nil {
				returned <- fmt.Errorf("panic: %v\n%s", v, debug.Stack())
			}
		}()
		returned <- h.f(ctx)
	}()
	select {
	case err := <-returned:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-returned:
		return err
	default:
		return fmt.Errorf("still running: %w", context.Cause(ctx))
	}
}

// conclude writes the report.
func (s *Server) conclude(began time.Time, cause stopCause, guarantee Guarantee, reached Phase, failed error) {
	report := s.countFates()
	report.Reason = cause.reason
	report.Took = time.Since(began)
	report.Guarantee = guarantee

	var result error
	switch {
	case cause.close, cause.bypassed && failed == nil:
		result = http.ErrServerClosed
	case failed != nil:
		result = &ShutdownError{Phase: reached, Report: report, Err: failed}
	}
	args := report.logArgs()
	if result != nil {
		s.log.Warn("usher: stopped", append(args, "phase", reached.String(), "error", result)...)
	} else {
		s.log.Info("usher: stopped", args...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result = result
	s.report = &report
	s.setPhase(PhaseStopped)
	close(s.done)
}
