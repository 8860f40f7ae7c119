// Package load makes load and says what became of each request, as the client
// sees it: nothing is retried, and nothing hides behind a connection pool.
//
//   - [Closed]: clients that ask again when they have been answered. Its rate
//     is whatever the server can do, so that a server that stalls is asked
//     less, and its waiting is seen by few requests.
//   - [Open]: requests that come at their times, answered or not. Latency
//     counts from the time at which a request was due: a stall is seen by all
//     that came meanwhile.
//   - [Burst]: connections first, then a request on each, all at once.
//
// HTTP/1 is that of internal/traffic; HTTP/2 is written frame by frame. Both
// talk to loopback and unix sockets only. Everything ends by itself, after a
// time and a number of requests.
package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/seed-235859eb/usher/internal/traffic"
)

// An Outcome is what became of a request.
type Outcome int

// The outcomes. Each request has one.
const (
	// Answered: a whole response of status 2xx.
	Answered Outcome = iota
	// Late: Answered, after the bound that was set for the run.
	Late
	// Rejected: a whole response that tells the client to come back later, 503
	// or 429.
	Rejected
	// Failed: a whole response of another status.
	Failed
	// Refused: connect was answered by a reset, or over HTTP/2 the server said
	// that it has not processed the request, by REFUSED_STREAM or GOAWAY. A
	// router may send it elsewhere; nothing is lost.
	Refused
	// Lost: the connection was established, or in use, and no whole response
	// came back.
	Lost
	// TimedOut: the client gave up, while connecting or waiting.
	TimedOut

	outcomes
)

var outcomeNames = [outcomes]string{"answered", "late", "rejected", "failed", "refused", "lost", "timed out"}

// Outcomes are all outcomes.
var Outcomes = []Outcome{Answered, Late, Rejected, Failed, Refused, Lost, TimedOut}

func (o Outcome) String() string { return outcomeNames[o] }

// An Exchange is what is known of one request.
type Exchange = traffic.Exchange

// A Mode is how HTTP/1 clients behave.
type Mode = traffic.Mode

// The modes.
const (
	PerRequest = traffic.PerRequest // dials for each request
	SlowStart  = traffic.SlowStart  // with 20 ms between connect and request
	KeepAlive  = traffic.KeepAlive  // one request after the other
	Think      = traffic.Think      // with 10 ms in between
	Upload     = traffic.Upload     // dials, and sends 64 KiB slowly
)

// Modes are all modes.
var Modes = traffic.Modes

// A Server is what load is put on.
type Server struct {
	Network string // "tcp" if empty, or "unix"
	Addr    string
	Path    string // "/" if empty
	TLS     bool   // without verification
	HTTP2   bool
}

func (s Server) traffic() traffic.Config {
	cfg := traffic.Config{Network: s.Network, Addr: s.Addr, Path: s.Path, TLS: s.TLS}
	if cfg.Network == "" {
		cfg.Network = "tcp"
	}
	return cfg
}

// Limits of every run, past any that makes sense on one machine.
const (
	maxClients  = 20_000
	maxRate     = 1e6
	maxDuration = time.Hour
	// defaultTimeout is that of a request.
	defaultTimeout = time.Minute
)

// A Result is what became of all requests.
type Result struct {
	Count [outcomes]int // by Outcome
	// Latency is that of requests that were Answered or Late, in microseconds,
	// without the client's own pauses.
	Latency *hdrhistogram.Histogram
	// FirstByte is the time from the dial to the response's first byte, in
	// microseconds, without the client's own pauses. It is that of requests
	// that made a connection of their own and were Answered or Late.
	FirstByte *hdrhistogram.Histogram
	Took      time.Duration
	// Behind is the latest that a request of an open loop was sent after it
	// was due, because the generator was not given the CPU.
	Behind time.Duration
	Errors []string // the first few that have one
}

// Of returns how many requests had one of these outcomes.
func (r *Result) Of(wanted ...Outcome) int {
	n := 0
	for _, o := range wanted {
		n += r.Count[o]
	}
	return n
}

// Total is the number of requests.
func (r *Result) Total() int { return r.Of(Outcomes...) }

// Quantile returns a percentile of a histogram of a Result.
func Quantile(h *hdrhistogram.Histogram, percent float64) time.Duration {
	return time.Duration(h.ValueAtQuantile(percent)) * time.Microsecond
}

// Add adds what came of another run. The result took as long as both.
func (r *Result) Add(other *Result) {
	if r.Latency == nil {
		r.Latency, r.FirstByte = newHistogram(), newHistogram()
	}
	for o, n := range other.Count {
		r.Count[o] += n
	}
	r.Latency.Merge(other.Latency)
	r.FirstByte.Merge(other.FirstByte)
	r.Took += other.Took
	r.Behind = max(r.Behind, other.Behind)
	r.Errors = append(r.Errors, other.Errors[:min(len(other.Errors), maxErrors-len(r.Errors))]...)
}

const maxErrors = 5

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(maxDuration/time.Microsecond), 3)
}

// A recorder counts, from many goroutines.
type recorder struct {
	bound time.Duration // of an answer that is not late; 0 for none
	each  func(*Exchange, Outcome)
	began time.Time
	cause context.CancelCauseFunc // ends the run

	mu     sync.Mutex
	result Result
}

func newRecorder(ctx context.Context, bound time.Duration, each func(*Exchange, Outcome)) (context.Context, *recorder) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &recorder{
		bound: bound, each: each, began: time.Now(), cause: cancel,
		result: Result{Latency: newHistogram(), FirstByte: newHistogram()},
	}
}

// errGenerator is why a run ends without a result.
type errGenerator struct{ error }

func (e errGenerator) Unwrap() error { return e.error }

// done returns the result. The context is that of newRecorder.
func (r *recorder) done(ctx context.Context) (*Result, error) {
	defer r.cause(nil)
	if e, ok := errors.AsType[errGenerator](context.Cause(ctx)); ok {
		return nil, fmt.Errorf("load: the generator itself failed: %w", e.error)
	}
	r.result.Took = time.Since(r.began)
	return &r.result, nil
}

// record counts a request that was due at a time.
func (r *recorder) record(x *Exchange, due time.Time) {
	latency := x.Ended.Sub(due) - x.Paused
	o := classify(x)
	if o == Answered && r.bound > 0 && latency > r.bound {
		o = Late
	}
	if r.each != nil {
		r.each(x, o)
	}
	if x.Err != nil && isLocal(x.Err) {
		r.cause(errGenerator{x.Err})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Count[o]++
	if x.Err != nil && len(r.result.Errors) < maxErrors {
		r.result.Errors = append(r.result.Errors, x.Err.Error())
	}
	if o != Answered && o != Late {
		return
	}
	// What is longer than a run may take does not happen.
	r.result.Latency.RecordValue(max(1, latency.Microseconds()))
	if x.Nth == 1 {
		r.result.FirstByte.RecordValue(max(1, (x.FirstByte.Sub(x.Began) - x.Paused).Microseconds()))
	}
}

// classify says what became of a request, but not whether it was late.
func classify(x *Exchange) Outcome {
	switch {
	case x.Err == nil && x.Status >= 200 && x.Status < 300:
		return Answered
	case x.Err == nil && (x.Status == http.StatusServiceUnavailable || x.Status == http.StatusTooManyRequests):
		return Rejected
	case x.Err == nil:
		return Failed
	case errors.Is(x.Err, errUnprocessed):
		return Refused
	case x.Nth == 0 && errors.Is(x.Err, syscall.EAGAIN):
		return Refused // the queue of a unix socket is full
	case isTimeout(x.Err):
		return TimedOut
	case x.Nth == 0 && !errors.Is(x.Err, syscall.ECONNRESET):
		return Refused
	}
	// A connect that fails with ECONNRESET had been established: one that was
	// not fails with ECONNREFUSED.
	return Lost
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
}

// isLocal reports whether it is this process that has run out of something.
func isLocal(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.EADDRNOTAVAIL, syscall.ENOBUFS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// checkDuration checks and returns what bounds a run in time.
func checkTimes(duration, timeout time.Duration) (time.Duration, error) {
	switch {
	case duration <= 0 || duration > maxDuration:
		return 0, fmt.Errorf("load: Duration is %v: must be positive, and at most %v", duration, maxDuration)
	case timeout < 0 || timeout > maxDuration:
		return 0, fmt.Errorf("load: Timeout is %v: must not be negative, and at most %v", timeout, maxDuration)
	case timeout == 0:
		return defaultTimeout, nil
	}
	return timeout, nil
}
