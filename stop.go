package usher

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/internal/gate"
	"github.com/seed-235859eb/usher/internal/track"
)

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
	if !s.valid { // Wrap has found fault
		s.result = s.err
		s.setPhase(PhaseStopped)
		close(s.done)
		return true
	}
	if s.opts.Shutdown.Delay > 0 && s.Phase() == PhaseServing && !cause.quick && !cause.bypassed && !cause.close {
		s.setPhase(PhaseLameDuck)
	} else {
		s.setPhase(PhaseGate)
	}
	go s.stop(ctx, cause)
	return true
}

// endLameDuck ends the lame duck.
func (s *Server) endLameDuck(why string) {
	s.mu.Lock()
	if !s.delayCut {
		s.delayCut = true
		close(s.noDelay)
	}
	s.mu.Unlock()
	s.log.Info("usher: second signal: no more delay; a third ends everything at once", "signal", why, "phase", s.Phase().String())
}

// endNow has the stop cut what is left.
func (s *Server) endNow(why string) {
	s.mu.Lock()
	s.end(errEndNow)
	s.mu.Unlock()
	s.log.Warn("usher: signal ends everything at once", "signal", why)
}

// end closes s.now. Its caller holds s.mu.
func (s *Server) end(cause error) {
	if s.cutting {
		return
	}
	s.cutting = true
	s.endCause = cause
	close(s.now)
}

var errBypassed = fmt.Errorf("Shutdown or Close of the http.Server was called directly: %w", http.ErrServerClosed)

// noteBypass is called when Shutdown or Close of the http.Server was called
// while it served, or while a stop still had need of it.
func (s *Server) noteBypass() {
	s.mu.Lock()
	first := !s.bypassed && s.Phase() < PhaseStopped
	s.bypassed = s.bypassed || first
	s.mu.Unlock()
	if first {
		s.log.Warn("usher: Shutdown or Close of the http.Server was called directly: requests are lost; call those of usher.Server")
		s.beginStop(context.Background(), stopCause{reason: "http.Server stopped directly", bypassed: true})
	}
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
	// What goes on beside the phases, until they are through.
	beside, enough := context.WithCancel(context.Background())
	var others sync.WaitGroup
	others.Go(func() { s.sayWhileWaiting(beside) })

	s.lameDuck(ctx)
	s.enterPhase(PhaseGate)
	s.beginDrain()
	others.Go(func() { s.endStreams(beside) })
	closed := make(chan drainResult, 1)
	go func() { closed <- s.closeListeners(ctx, cause) }()
	gate := s.drain(ctx, cause, closed)
	if ctx.Err() == nil {
		s.enterPhase(PhaseFinish)
		s.finish(ctx, cause)
	}
	reached := s.Phase()
	var failed error
	var inFlight []string
	if reached < PhaseFinish || !s.empty(cause) {
		failed = context.Cause(ctx)
		s.enterPhase(PhaseHard)
		inFlight = s.requests.Oldest(maxCutNamed)
		s.log.Warn("usher: time is up: what is left is cut", s.waitingFor()...)
		s.cutAll(parent, grace, cause)
	}
	if grace <= 0 { // its context's deadline had passed before; the hooks run all the same
		grace = s.opts.Shutdown.GracePeriod
	}
	failed = errors.Join(failed, s.runHooks(latest(began.Add(grace), time.Now().Add(grace/10))))
	enough()
	others.Wait()
	s.conclude(began, cause, gate, inFlight, reached, failed)
}

// maxCutNamed is how many requests a report names.
const maxCutNamed = 20

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
	case <-s.noDelay:
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
		l.conns.LeaveHTTP2(&s.goodbyes)
	}
	s.opaque.BeginStop()
	s.opaque.Want(track.Left | track.Quiet | track.Detached)
	s.opaque.LeaveHTTP2(&s.goodbyes)
	s.goodbyes.Begun()
	for _, f := range onDrain {
		go f()
	}
}

// closeListeners goes through the gate and empties the accept queues, and
// returns the weakest result of all listeners.
func (s *Server) closeListeners(ctx context.Context, cause stopCause) drainResult {
	s.mu.Lock()
	listeners, unseen := slices.Clone(s.listeners), s.unseen
	s.mu.Unlock()
	listeners = slices.DeleteFunc(listeners, func(l *Listener) bool { return l.ended.Load() })
	if cause.bypassed || cause.close {
		for _, l := range listeners {
			l.Close()
		}
		return drainResult{gate.Result{Mechanism: gate.None, Reason: cause.reason}}
	}
	type result struct {
		drainResult
		err error
	}
	shut, results := make(chan struct{}), make(chan result)
	open, undrained := len(listeners), len(listeners)
	for _, l := range listeners {
		go func() {
			_, err := l.Drain(ctx)
			results <- result{l.result(), err}
		}()
		go func() {
			select {
			case <-l.gateShut:
			case <-ctx.Done():
			}
			shut <- struct{}{}
		}()
	}
	weakest := drainResult{gate.Result{Guarantee: gate.GuaranteeAll}}
	if unseen {
		weakest = drainResult{gate.Result{Mechanism: gate.None, Reason: "the http.Server was told to serve directly"}}
	}
	for open > 0 || undrained > 0 {
		select {
		case <-shut:
			if open--; open == 0 {
				s.enterPhase(PhaseAcceptQueue)
			}
		case r := <-results:
			undrained--
			weakest = drainResult{weakest.Weaker(r.Result)}
			if r.err != nil {
				s.log.Warn("usher: accept queue not served", "error", r.err)
			}
		}
	}
	return weakest
}

// finish calls net/http's Shutdown, which by now only has HTTP/2 connections
// to say goodbye to, and waits until all connections have left.
func (s *Server) finish(ctx context.Context, cause stopCause) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		s.endHTTP(ctx)
	}()
	for !s.empty(cause) {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
	// It polls; there is nothing left to poll for.
	cancel()
	<-returned
}

// lastWords is how long a stop waits for a log that nobody reads.
const lastWords = 100 * time.Millisecond

// conclude writes the report.
func (s *Server) conclude(began time.Time, cause stopCause, drained drainResult, inFlight []string, reached Phase, failed error) {
	report := s.countFates()
	// Their Close hangs, or their Accept has not returned them yet.
	report.Cut, report.StillOpen = report.Cut+report.StillOpen, 0
	report.Reason = cause.reason
	report.CutRequests = inFlight
	report.Took = time.Since(began)
	report.Guarantee, report.Gate, report.GateReason = drained.guarantee(), Gate(drained.Mechanism), drained.Reason

	s.mu.Lock()
	if s.bypassed {
		failed = errors.Join(failed, errBypassed)
		report.Guarantee = GuaranteeNone
	}
	s.mu.Unlock()
	var result error
	switch {
	case cause.close:
		result = http.ErrServerClosed
	case failed != nil:
		result = &ShutdownError{Phase: reached, Report: report, Err: failed}
	}
	if s.limiter != nil {
		s.limiter.full.end()
	}
	args := report.logArgs()
	if result != nil || report.Guarantee < bestGuarantee {
		s.log.Warn("usher: stopped", append(args, "phase", reached.String(), "error", result)...)
	} else {
		s.log.Info("usher: stopped", args...)
	}
	s.logging.Flush(lastWords)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result = result
	s.report = &report
	s.setPhase(PhaseStopped)
	close(s.done)
}
