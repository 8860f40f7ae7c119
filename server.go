package usher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/internal/asynclog"
	"github.com/seed-235859eb/usher/internal/goaway"
	"github.com/seed-235859eb/usher/internal/inflight"
	"github.com/seed-235859eb/usher/internal/supervised"
	"github.com/seed-235859eb/usher/internal/track"
)

// Options are the options of a [Server]. The zero value is the default for
// production.
type Options struct {
	Listener ListenerOptions
	Fairness FairnessOptions
	Shutdown ShutdownOptions

	// Logger gets warnings, and a line when the server begins to serve, when a
	// stop begins, while it waits, and when it has ended. No request waits for the
	// Logger: lines that it does not take in time are dropped and counted. A stop
	// waits 100 ms at most for its last lines. Nil means [slog.Default].
	Logger *slog.Logger
}

// Validate returns an error that names each field that is out of range, with its
// value, or nil if there is none. It is for programs that parse flags. The
// methods of a [Server] that serve return the same error.
func (o Options) Validate() error {
	if err := errors.Join(o.Listener.validate("Options.Listener."), o.Fairness.validate("Options.Fairness."), o.Shutdown.validate()); err != nil {
		return err
	}
	o = o.withDefaults()
	if g := o.Shutdown; g.Delay+o.Listener.HandshakeGrace >= g.GracePeriod {
		return fmt.Errorf("usher: Options.Shutdown.Delay (%v) and Options.Listener.HandshakeGrace (%v) leave nothing of GracePeriod (%v)",
			g.Delay, o.Listener.HandshakeGrace, g.GracePeriod)
	}
	return nil
}

func (o Options) withDefaults() Options {
	o.Shutdown = o.Shutdown.withDefaults()
	if o.Listener.HandshakeGrace == 0 {
		o.Listener.HandshakeGrace = min(defaultHandshakeGrace, o.Shutdown.GracePeriod/20)
	}
	return o
}

// A Server wraps an [http.Server] so that it can be stopped without losing a
// request. Methods that http.Server has, too, mean the same here, with one
// difference: Serve, ServeTLS, ListenAndServe and ListenAndServeTLS return after
// the stop has ended.
//
// While the Server serves, handlers get the ResponseWriter that net/http made,
// not a wrapper. With Go 1.27, requests over TLS that are CONNECT or ask for an
// upgrade are an exception, so that Hijack returns a *tls.Conn; for others, it
// returns a connection that embeds one there.
//
// All methods may be called from many goroutines at once.
type Server struct {
	http    *http.Server
	opts    Options
	logging *asynclog.Handler // of log
	log     *slog.Logger
	valid   bool          // Wrap has found no fault
	limiter *Limiter      // nil without Options.Fairness.Slots
	opaque  *track.Opaque // connections that no Listener wrapped
	install sync.Once     // of the hooks into http

	phase     atomic.Int32
	begun     atomic.Uint64 // requests
	ended     atomic.Uint64 // of those
	requests  inflight.Table
	aborted   atomic.Int64 // HTTP/1 responses that were cut though their handlers had returned
	newcomers atomic.Int32 // connections that wait for a place among MaxConns
	goodbyes  goaway.Group // of HTTP/2 connections
	endsHTTP  atomic.Bool  // the stop has called, or is about to, Shutdown or Close of http
	baseAsked atomic.Bool  // net/http has called our BaseContext

	draining chan struct{} // closed when the drain begins
	wake     chan struct{} // has an element when the stop should look again
	noDelay  chan struct{} // closed to end the lame duck
	now      chan struct{} // closed to end at once
	done     chan struct{} // closed when the stop has ended

	mu         sync.Mutex // guards the following
	err        error      // what is wrong with the options
	listeners  []*Listener
	former     formerCounts // of listeners that are not among these any more
	door       *goaway.Door // to HTTP/2 over TLS; nil until something is served
	hooks      []hook
	hooksRun   bool                      // all of them have
	onDrain    []func()                  // see RegisterOnShutdown
	cancels    []context.CancelCauseFunc // of the base contexts
	phaseSince time.Time
	stopping   bool
	bypassed   bool // somebody called Shutdown or Close of http
	unseen     bool // somebody called Serve of http
	delayCut   bool // noDelay has been closed
	cutting    bool // now has been closed
	endCause   error
	report     *Report
	result     error // of Shutdown and Run, after done
}

// Wrap returns a Server for srv, which must not be serving yet. The fields of srv
// may be set until the first call of a method that serves. Then Handler,
// ConnState, BaseContext and, with Slots, ConnContext are wrapped. Each calls what
// the user had set first.
//
// Serve with the methods of the Server, not with those of srv. A listener that
// srv serves itself cannot be emptied before it is closed, so a stop loses
// requests. The log and the report say so.
//
// Wrap returns no error. If srv is nil, or an option is out of range, the methods
// that serve return the error; see [Options.Validate].
func Wrap(srv *http.Server, opts Options) *Server {
	s := &Server{
		http:       srv,
		opts:       opts,
		logging:    asynclog.NewHandler(cmp.Or(opts.Logger, slog.Default()).Handler()),
		draining:   make(chan struct{}),
		wake:       make(chan struct{}, 1),
		noDelay:    make(chan struct{}),
		now:        make(chan struct{}),
		done:       make(chan struct{}),
		phaseSince: time.Now(),
	}
	s.log = slog.New(s.logging)
	s.opaque = track.NewOpaque(opaqueOwner{s})
	s.goodbyes.Changed = s.connsChanged
	if srv == nil {
		s.err = errors.New("usher: Wrap: the http.Server is nil")
		return s
	}
	if s.err = opts.Validate(); s.err != nil {
		return s
	}
	s.opts = opts.withDefaults()
	if opts.Fairness.Slots > 0 {
		s.limiter = newLimiter(opts.Fairness, true, s.log)
	}
	s.valid = true
	// Who serves srv itself, or stops it, is seen by these.
	srv.BaseContext = s.baseContext(srv.BaseContext)
	srv.ConnState = s.firstConn(srv.ConnState)
	srv.RegisterOnShutdown(func() {
		if s.Phase() > PhaseStarting && !s.endsHTTP.Load() {
			s.noteBypass()
		}
	})
	return s
}

// Serve accepts connections on l and serves them. l may be a [Listener], which
// keeps its own options, or any other; see [Guarantee] for the difference that
// it makes to a stop. l is closed when Serve returns.
//
// Serve returns [http.ErrServerClosed] after a stop has ended, or at once if the
// stop began before the call. [Server.Shutdown] and [Server.Run] return how the
// stop went. Any other error is that of Accept, and ends this call alone.
func (s *Server) Serve(l net.Listener) error {
	return s.serve(l, false, func(l net.Listener) error { return s.door.Serve(l) })
}

// ServeTLS is Serve for TLS connections, with files and TLSConfig as
// [http.Server.ServeTLS] takes them.
func (s *Server) ServeTLS(l net.Listener, certFile, keyFile string) error {
	return s.serve(l, true, func(l net.Listener) error {
		return s.door.ServeTLS(l, certFile, keyFile)
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

func (s *Server) hasCertificate() bool {
	if s.http == nil || s.http.TLSConfig == nil {
		return false
	}
	c := s.http.TLSConfig
	return len(c.Certificates) > 0 || c.GetCertificate != nil || c.GetConfigForClient != nil
}

func (s *Server) serve(l net.Listener, secure bool, run func(net.Listener) error) error {
	if l == nil {
		return errors.New("usher: Serve: the listener is nil")
	}
	ours, err := s.register(l)
	if err != nil {
		l.Close()
		return err
	}
	return s.serveRegistered(ours, secure, run)
}

// serveRegistered serves what register has returned.
func (s *Server) serveRegistered(ours *Listener, secure bool, run func(net.Listener) error) (err error) {
	s.chain()
	s.log.Info("usher: serving", "addr", ours.Addr().String(), "tls", secure || ours.under() != nil,
		"slots", s.opts.Fairness.Slots, "max_conns", ours.opts.MaxConns, "guarantee", ours.expects().String())
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
		err = http.ErrServerClosed
	}
	ours.Close()

	s.mu.Lock()
	stopping := s.stopping
	closed := errors.Is(err, http.ErrServerClosed)
	if !stopping && !closed {
		ours.end()
		s.forgetSpent()
		s.mu.Unlock()
		return err
	}
	s.mu.Unlock()
	if closed && !s.endsHTTP.Load() {
		s.noteBypass()
	}
	<-s.done
	return http.ErrServerClosed
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
	s.startServing()
	return ours, nil
}

// adopt lets l report to s. Its caller holds s.mu.
func (s *Server) adopt(l *Listener) {
	if l.ended.Load() || slices.Contains(s.listeners, l) {
		return
	}
	s.forgetSpent()
	l.observe(s)
	s.followHTTP2(l)
	s.listeners = append(s.listeners, l)
	if below := l.under(); below != nil {
		s.adopt(below)
	}
	if s.Phase() >= PhaseGate {
		l.markStopping()
		l.conns.LeaveHTTP2(&s.goodbyes)
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

type serverKey struct{}

// Draining returns a channel that is closed when it is time for a long response
// to end: when the server of the request that ctx belongs to begins to drain. ctx
// itself is not cancelled then; that may happen when GracePeriod is over. For a
// context that belongs to no request of a [Server] the channel is nil, and a
// receive from it blocks for ever.
//
//	select {
//	case event := <-events:
//		send(w, event)
//	case <-usher.Draining(r.Context()):
//		return // the client reconnects elsewhere
//	case <-r.Context().Done():
//		return
//	}
//
// Pass the request's own context. A *gin.Context does not look into it by
// default: with gin, pass c.Request.Context(). The contexts of connect-go and of
// grpc-go's ServeHTTP descend from the request's: end a stream with the status
// Unavailable, and its client may open the next one elsewhere; examples/rpc in
// the repository does so. [Server.Draining] needs no context.
func Draining(ctx context.Context) <-chan struct{} {
	if draining, ok := ctx.Value(drainingKey{}).(<-chan struct{}); ok {
		return draining
	}
	if s, ok := ctx.Value(serverKey{}).(*Server); ok {
		return s.draining
	}
	return nil
}

type drainingKey struct{}

// WithDraining returns a context for which [Draining] returns the given channel.
// It is for tests of handlers without a server, and for servers that usher does
// not wrap.
func WithDraining(ctx context.Context, draining <-chan struct{}) context.Context {
	return context.WithValue(ctx, drainingKey{}, draining)
}

// Draining returns the channel that is closed when s begins to drain. It is the
// one that the function [Draining] returns for the requests of s.
func (s *Server) Draining() <-chan struct{} { return s.draining }

// Limiter returns the server's limiter, or nil if Options.Fairness.Slots is zero.
func (s *Server) Limiter() *Limiter { return s.limiter }

// Ready returns a handler for readiness probes. It answers 200 while the server
// serves, and 503 before that and from the first moment of a stop. The body is
// one line: "ready", or the name of the phase.
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
