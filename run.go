package usher

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

// Run listens, serves, and stops on SIGTERM, on SIGINT, or when ctx ends. It
// returns what [Server.Shutdown] returns: nil if the stop was complete, also if it
// began before Run did.
//
// Run listens on the http.Server's Addr, or serves the given listeners. It speaks
// TLS if the http.Server has a TLSConfig; one without a certificate is an error.
// If one listener fails, Run stops the others and returns its error, too.
//
// SIGINT, which mostly comes from a person at a terminal, skips Delay and
// IdleGrace. A second signal ends the lame duck, a third ends everything at once.
// SIGTERM that comes several times within a second counts once. Signals are caught
// only while Run runs. On listeners of package prefork they are not caught: its
// master says when to stop.
func (s *Server) Run(ctx context.Context, listeners ...net.Listener) error {
	if slices.ContainsFunc(listeners, isSupervised) {
		return s.run(ctx, nil, listeners)
	}
	signals := make(chan os.Signal, 3)
	notifyStop(signals)
	defer signal.Stop(signals)
	return s.run(ctx, signals, listeners)
}

// notifyStop has the signals that stop a server sent to c, but for one that was
// ignored at the start: SIGINT is, in a command that a shell has put into the
// background, and is not meant for it.
func notifyStop(c chan<- os.Signal) {
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		if !signal.Ignored(sig) {
			signal.Notify(c, sig)
		}
	}
}

// RunUntil is [Server.Run] without signals, for programs that catch signals
// themselves. It stops when ctx ends, with Delay and IdleGrace, or when Shutdown is
// called.
func (s *Server) RunUntil(ctx context.Context, listeners ...net.Listener) error {
	return s.run(ctx, nil, listeners)
}

func (s *Server) run(ctx context.Context, signals <-chan os.Signal, listeners []net.Listener) error {
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	if err == nil && s.http.TLSConfig != nil && !s.hasCertificate() {
		err = errors.New("usher: Run: TLSConfig has neither Certificates nor GetCertificate nor GetConfigForClient; set one, use ListenAndServeTLS with files, or leave TLSConfig nil to serve without TLS")
	}
	if err != nil {
		closeAll(listeners)
		return err
	}
	secure := s.hasCertificate() // net/http changes TLSConfig when it serves
	if len(listeners) == 0 {
		addr := ":http"
		if secure {
			addr = ":https"
		}
		l, err := s.listen(addr)
		if errors.Is(err, http.ErrServerClosed) {
			return s.wait()
		}
		if err != nil {
			return err
		}
		listeners = []net.Listener{l}
	}
	if slices.Contains(listeners, nil) {
		closeAll(listeners)
		return errors.New("usher: Run: a listener is nil")
	}
	// All are the stop's before it can begin: what waits in their queues already
	// is served then.
	var serves []func() error
	for _, l := range listeners {
		ours, err := s.register(l)
		if err != nil { // the stop has begun before Run
			l.Close()
			continue
		}
		serves = append(serves, func() error {
			return s.serveRegistered(ours, secure, func(l net.Listener) error {
				if secure {
					return s.door.ServeTLS(l, "", "")
				}
				return s.door.Serve(l)
			})
		})
	}
	results := make(chan error)
	for _, serve := range serves {
		go func() { results <- serve() }()
	}

	var failed []error
	heard := signalsHeard{stopper: s}
	over := ctx.Done()
	for left := len(serves); left > 0; {
		select {
		case err := <-results:
			left--
			if !errors.Is(err, http.ErrServerClosed) {
				failed = append(failed, err)
				s.beginStop(context.Background(), stopCause{reason: "a listener failed"})
			}
		case <-over:
			over = nil
			s.beginStop(context.Background(), stopCause{reason: context.Cause(ctx).Error()})
		case sig := <-signals:
			heard.hear(sig)
		}
	}
	return errors.Join(append(failed, s.wait())...)
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		if l != nil {
			l.Close()
		}
	}
}

// wait waits for the stop to end, and returns how it went.
func (s *Server) wait() error {
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result
}

// signalBurst is how far apart two SIGTERM are at least that count as two.
const signalBurst = time.Second

// A stopper is what signals act on.
type stopper interface {
	begin(cause stopCause) bool // begins the stop, unless it has
	endLameDuck(why string)
	endNow(why string)
}

func (s *Server) begin(cause stopCause) bool { return s.beginStop(context.Background(), cause) }

// signalsHeard says what the signals mean that Run has received.
type signalsHeard struct {
	stopper    stopper
	count      int
	terminated time.Time // when SIGTERM was last counted
}

func (h *signalsHeard) hear(sig os.Signal) {
	if sig == syscall.SIGTERM {
		// Process groups get it from several sides, and Heroku sends it to all
		// processes, more than once. A person is slower.
		if !h.terminated.IsZero() && time.Since(h.terminated) < signalBurst {
			return
		}
		h.terminated = time.Now()
	}
	h.count++
	switch h.count {
	case 1:
		if !h.stopper.begin(stopCause{reason: sig.String(), quick: sig == os.Interrupt}) {
			h.stopper.endLameDuck(sig.String())
		}
	case 2:
		h.stopper.endLameDuck(sig.String())
	case 3:
		h.stopper.endNow(sig.String())
	}
}
