package usher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/supervised"
	"github.com/seed-235859eb/usher/internal/track"
)

// Options are the options of a [Server]. The zero value is the default for
// production.
type Options struct {
	Listener ListenerOptions
	Fairness FairnessOptions
	Shutdown ShutdownOptions

	// Logger gets a line when a stop begins and one when it has ended, and
	// warnings. Nil means [slog.Default].
	Logger *slog.Logger
}

// A Server wraps an [http.Server] so that it can be stopped without losing a
// request. Methods that http.Server has too keep its meaning, but for Serve
// and its kin, which return after the stop has ended.
//
// While it serves, handlers get the very ResponseWriter that net/http made,
// and requests take net/http's path. All methods may be called from many
// goroutines at once.
type Server struct {
	http *http.Server
	opts Options
	log  *slog.Logger

	limiter *Limiter // nil without Options.Fairness.Slots

	install   sync.Once
	valid     bool // Wrap has found no fault
	phase     atomic.Int32
	begun     atomic.Uint64 // requests
	ended     atomic.Uint64 // of those
	newcomers atomic.Int32  // connections that wait for a place among MaxConns
	draining  chan struct{} // closed when the drain begins
	wake      chan struct{} // has an element when the stop should look again
	hurry     chan struct{} // closed to cut the lame duck short
	opaque    *opaqueConns
	now       chan struct{} // closed to end at once
	done      chan struct{} // closed when the stop has ended

	mu         sync.Mutex
	err        error // what is wrong with the options
	listeners  []*Listener
	hooks      []hook
	onDrain    []func()                  // see RegisterOnShutdown
	cancels    []context.CancelCauseFunc // of the base contexts
	phaseSince time.Time
	stopping   bool
	hurried    bool // hurry has been closed
	cutting    bool // now has been closed
	endCause   error
	report     *Report
	result     error // of Serve, after done
}

// Wrap returns a Server for srv, which must not be serving yet. Its fields may
// still be set until the first call of a method that serves; from then on its
// Handler, ConnState, BaseContext and, with a limiter, ConnContext are wrapped,
// each calling what the user had set first.
//
// An option that is out of range is reported by the methods that serve.
func Wrap(srv *http.Server, opts Options) *Server {
	s := &Server{
		http:       srv,
		opts:       opts,
		log:        cmp.Or(opts.Logger, slog.Default()),
		draining:   make(chan struct{}),
		wake:       make(chan struct{}, 1),
		hurry:      make(chan struct{}),
		now:        make(chan struct{}),
		done:       make(chan struct{}),
		phaseSince: time.Now(),
	}
	s.opaque = newOpaqueConns(s)
	if srv == nil {
		s.err = errors.New("usher: Wrap: the http.Server is nil")
		return s
	}
	if s.err = errors.Join(opts.Listener.validate("Options.Listener."), opts.Fairness.validate("Options.Fairness."), opts.Shutdown.validate()); s.err != nil {
		return s
	}
	s.opts.Shutdown = opts.Shutdown.withDefaults()
	if opts.Listener.HandshakeGrace == 0 {
		s.opts.Listener.HandshakeGrace = min(defaultHandshakeGrace, s.opts.Shutdown.GracePeriod/20)
	}
	if g := s.opts.Shutdown; g.Delay+s.opts.Listener.HandshakeGrace >= g.GracePeriod {
		s.err = fmt.Errorf("usher: Options.Shutdown.Delay (%v) and Options.Listener.HandshakeGrace (%v) leave nothing of GracePeriod (%v)",
			g.Delay, s.opts.Listener.HandshakeGrace, g.GracePeriod)
		return s
	}
	if opts.Fairness.Slots > 0 {
		s.limiter = newLimiter(opts.Fairness, true)
	}
	s.valid = true
	return s
}

// Serve accepts connections on l and serves them. l may be a [Listener], which
// keeps its own options, or any other; see [Guarantee] for the difference that
// it makes to a stop. It is closed when Serve returns.
//
// Serve returns after a stop has ended: nil if nothing was cut short and no
// hook failed, else a [*ShutdownError]. It returns [http.ErrServerClosed] at
// once if the stop began before it was called, and after [Server.Close]; any
// other error is Accept's, and ends this call alone.
func (s *Server) Serve(l net.Listener) error {
	return s.serve(l, s.http.Serve)
}

// ServeTLS is Serve for TLS connections, with files and TLSConfig as
// [http.Server.ServeTLS] takes them.
func (s *Server) ServeTLS(l net.Listener, certFile, keyFile string) error {
	return s.serve(l, func(l net.Listener) error {
		return s.http.ServeTLS(l, certFile, keyFile)
	})
}

// ListenAndServe listens on the http.Server's Addr, ":http" if it is empty,
// and calls Serve.
func (s *Server) ListenAndServe() error {
	l, err := s.listen(":http")
	if err != nil {
		return err
	}
	return s.Serve(l)
}

// ListenAndServeTLS listens on the http.Server's Addr, ":https" if it is
// empty, and calls ServeTLS.
func (s *Server) ListenAndServeTLS(certFile, keyFile string) error {
	l, err := s.listen(":https")
	if err != nil {
		return err
	}
	return s.ServeTLS(l, certFile, keyFile)
}

func (s *Server) listen(addr string) (net.Listener, error) {
	s.mu.Lock()
	err, stopping := s.err, s.stopping
	s.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case stopping:
		return nil, http.ErrServerClosed
	}
	return Listen("tcp", cmp.Or(s.http.Addr, addr))
}

// Run listens, serves, and stops on SIGTERM, on SIGINT, or when ctx ends; it
// returns what Serve does. It listens on the http.Server's Addr, or serves
// the given listeners, and speaks TLS if the http.Server's TLSConfig has a
// certificate. If one listener fails, Run stops the others and returns its
// error too.
//
// SIGINT, which mostly comes from a person at a terminal, skips Delay and
// IdleGrace. A second signal cuts the lame duck short; a third ends
// everything at once; but SIGTERM that comes several times within a second
// counts once. Signals are caught only while Run runs, and not at all on
// the listeners of package prefork, which says itself when to stop.
func (s *Server) Run(ctx context.Context, listeners ...net.Listener) error {
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	if err != nil {
		for _, l := range listeners {
			l.Close()
		}
		return err
	}
	signals := make(chan os.Signal, 3)
	if !slices.ContainsFunc(listeners, isSupervised) {
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		defer signal.Stop(signals)
	}

	secure := s.hasCertificate() // net/http changes TLSConfig when it serves
	if len(listeners) == 0 {
		addr := ":http"
		if secure {
			addr = ":https"
		}
		l, err := s.listen(addr)
		if err != nil {
			return err
		}
		listeners = []net.Listener{l}
	}
	results := make(chan error)
	for _, l := range listeners {
		go func() {
			if secure {
				results <- s.ServeTLS(l, "", "")
			} else {
				results <- s.Serve(l)
			}
		}()
	}

	var failed []error
	var terminated time.Time // when SIGTERM was last counted
	over := ctx.Done()
	for left, received := len(listeners), 0; left > 0; {
		select {
		case err := <-results:
			left--
			select {
			case <-s.done:
				// All calls return the result of the stop; one is enough.
			default:
				failed = append(failed, err)
				s.beginStop(context.Background(), stopCause{reason: "a listener failed"})
			}
		case <-over:
			over = nil
			s.beginStop(context.Background(), stopCause{reason: context.Cause(ctx).Error()})
		case sig := <-signals:
			if sig == syscall.SIGTERM {
				// Process groups get it from several sides, and Heroku sends it
				// to all processes, more than once. A person is slower.
				if !terminated.IsZero() && time.Since(terminated) < signalBurst {
					continue
				}
				terminated = time.Now()
			}
			received++
			switch received {
			case 1:
				if !s.beginStop(context.Background(), stopCause{reason: sig.String(), quick: sig == os.Interrupt}) {
					s.cutLameDuck(sig.String())
				}
			case 2:
				s.cutLameDuck(sig.String())
			case 3:
				s.endNow(sig.String())
			}
		}
	}
	select {
	case <-s.done:
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(failed) == 0 {
			return s.result
		}
		return errors.Join(append(failed, s.result)...)
	default:
		return errors.Join(failed...)
	}
}

// signalBurst is how far apart two SIGTERM are at least that count as two.
const signalBurst = time.Second

func (s *Server) hasCertificate() bool {
	if s.http == nil || s.http.TLSConfig == nil {
		return false
	}
	c := s.http.TLSConfig
	return len(c.Certificates) > 0 || c.GetCertificate != nil || c.GetConfigForClient != nil
}

func (s *Server) serve(l net.Listener, run func(net.Listener) error) error {
	if l == nil {
		return errors.New("usher: Serve: the listener is nil")
	}
	ours, err := s.register(l)
	if err != nil {
		l.Close()
		return err
	}
	s.install.Do(s.chain)
	if sv, ok := ours.inner.(supervised.Listener); ok {
		sv.Served(control{s})
	}

	served := make(chan error, 1)
	go func() { served <- run(ours) }()
	select {
	case err = <-served:
	case <-s.done:
		// The listener's Accept or Close hangs, or this call is a moment
		// behind; the result is the same.
	}
	ours.Close()

	s.mu.Lock()
	stopping := s.stopping
	s.mu.Unlock()
	if !stopping {
		if !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		s.noteBypass()
	}
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result
}

// register wraps l, unless it is a Listener, and notes it for the stop.
func (s *Server) register(l net.Listener) (*Listener, error) {
	ours, ok := l.(*Listener)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	if s.stopping {
		return nil, http.ErrServerClosed
	}
	if !ok {
		ours = newListener(l, s.opts.Listener, s.log)
	}
	s.adopt(ours)
	if s.Phase() == PhaseStarting {
		s.setPhase(PhaseServing)
	}
	return ours, nil
}

// adopt lets l report to s. Its caller holds s.mu.
func (s *Server) adopt(l *Listener) {
	if slices.Contains(s.listeners, l) {
		return
	}
	l.observe(s)
	s.listeners = append(s.listeners, l)
	if s.Phase() >= PhaseGate {
		l.markStopping()
	}
}

// connsChanged implements [observer]: it has the stop look again.
func (s *Server) connsChanged() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// newcomersChanged implements [observer].
func (s *Server) newcomersChanged(by int) { s.newcomers.Add(int32(by)) }

// noteState passes what net/http says of a connection on to what follows it.
func (s *Server) noteState(nc net.Conn, state http.ConnState) {
	c := track.Of(nc)
	if c == nil {
		if s.opaque.report(nc, state) {
			s.log.Warn("usher: a listener speaks TLS itself or hides its connections: MaxConns does not hold for them, and a stop cannot tell a silent one from a busy one")
		}
		return
	}
	if state == http.StateNew {
		if l := listenerOf(c); l != nil && l.observe(s) {
			// It came under a TLS listener.
			s.mu.Lock()
			s.adopt(l)
			s.mu.Unlock()
		}
	}
	c.Report(nc, state)
}

// chain puts usher's hooks behind those of the user.
func (s *Server) chain() {
	h := s.http.Handler
	if h == nil {
		h = http.DefaultServeMux
	}
	s.http.Handler = s.handler(h)
	if s.limiter != nil {
		// Outside: a response is its connection's last if the drain has begun
		// by the time its request has a slot.
		s.http.Handler = s.limiter.Handler(s.http.Handler)
		connContext := s.http.ConnContext
		s.http.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
			if connContext != nil {
				if ctx = connContext(ctx, c); ctx == nil {
					return nil // net/http says what is wrong
				}
			}
			return ConnContext(ctx, c)
		}
	}

	connState := s.http.ConnState
	s.http.ConnState = func(c net.Conn, state http.ConnState) {
		if connState != nil {
			connState(c, state)
		}
		s.noteState(c, state)
	}

	base := s.http.BaseContext
	s.http.BaseContext = func(l net.Listener) context.Context {
		ctx := context.Background()
		if base != nil {
			if ctx = base(l); ctx == nil {
				return nil // net/http says what is wrong
			}
		}
		// One cancel context for all connections: each registers with it once,
		// and requests register with their connection.
		ctx, cancel := context.WithCancelCause(context.WithValue(ctx, serverKey{}, s))
		s.mu.Lock()
		s.cancels = append(s.cancels, cancel)
		s.mu.Unlock()
		return ctx
	}
}

type serverKey struct{}

// Draining returns a channel that is closed when the server of the request
// that ctx belongs to begins to drain: when it is time for a long response to
// end. ctx is not cancelled then, and may stay so until GracePeriod is over.
// For any other context the channel is nil, and blocks for ever.
//
//	select {
//	case event := <-events:
//		send(w, event)
//	case <-usher.Draining(r.Context()):
//		return // the client reconnects elsewhere
//	case <-r.Context().Done():
//		return
//	}
func Draining(ctx context.Context) <-chan struct{} {
	if s, ok := ctx.Value(serverKey{}).(*Server); ok {
		return s.draining
	}
	return nil
}

// Limiter returns the limiter that Options.Fairness describe, or nil if they set
// no Slots.
func (s *Server) Limiter() *Limiter { return s.limiter }

// Ready returns a handler for readiness probes: 200 while the server serves,
// 503 before it does and from the first moment of a stop.
func (s *Server) Ready() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if p := s.Phase(); p != PhaseServing {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, p)
			return
		}
		fmt.Fprintln(w, "ready")
	})
}
