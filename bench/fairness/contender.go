// Package fairness compares ways to limit how many requests an [http.Server]
// handles at a time. Its tests hold each of them to the promises that usher
// makes, its benchmarks say what each costs:
//
//	go test ./fairness -run Conformance -v -update
//	go test ./fairness -run '^$' -bench .
package fairness

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/failsafe-go/failsafe-go/bulkhead"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/seed-235859eb/usher"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/semaphore"
)

// Limits are what a [Contender] is asked to keep. One that has no such limit
// ignores it.
type Limits struct {
	Slots     int           // requests handled at a time
	MaxQueue  int           // requests that wait
	MaxWait   time.Duration // of a request
	MaxInline int           // requests of a connection in a row, while others wait

	// Exempt says which requests need no slot. For a middleware it stands for
	// routes outside of it.
	Exempt func(*http.Request) bool `json:"-"`
}

// A Server is what http.Server and usher.Server have in common.
type Server interface {
	Serve(net.Listener) error
	Close() error
}

// A Contender is a way to limit requests.
type Contender struct {
	Name   string
	Module string // empty for net/http
	Limits bool   // false if there is no limit at all

	// New returns a server that keeps limits. What it does not set of srv is
	// left as it was.
	New func(srv *http.Server, limits Limits) Server

	// QueueWait tells a handler how long its request has waited. Nil means
	// that nothing does.
	QueueWait func(context.Context) time.Duration
}

// Contenders are all of them, plain net/http first and usher last.
var Contenders = []Contender{Bare, Semaphore, LimitListener, Throttle, Bulkhead, Usher}

// Bare is net/http by itself.
var Bare = Contender{
	Name: "net/http",
	New:  func(srv *http.Server, _ Limits) Server { return srv },
}

// Semaphore acquires a weighted semaphore in the handler.
var Semaphore = Contender{
	Name:   "x/sync/semaphore",
	Module: "golang.org/x/sync",
	Limits: true,
	New: func(srv *http.Server, limits Limits) Server {
		return withMiddleware(srv, limits, SemaphoreHandler(limits.Slots))
	},
}

// SemaphoreHandler is the middleware of [Semaphore].
func SemaphoreHandler(slots int) func(http.Handler) http.Handler {
	sem := semaphore.NewWeighted(int64(slots))
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if sem.Acquire(r.Context(), 1) != nil {
				return // the client has left
			}
			defer sem.Release(1)
			next.ServeHTTP(w, r)
		})
	}
}

// LimitListener limits connections.
var LimitListener = Contender{
	Name:   "netutil.LimitListener",
	Module: "golang.org/x/net",
	Limits: true,
	New: func(srv *http.Server, limits Limits) Server {
		return limitListenerServer{srv, limits.Slots}
	},
}

type limitListenerServer struct {
	*http.Server
	slots int
}

func (s limitListenerServer) Serve(l net.Listener) error {
	return s.Server.Serve(netutil.LimitListener(l, s.slots))
}

// Throttle is chi's middleware, with a backlog.
var Throttle = Contender{
	Name:   "chi Throttle",
	Module: "github.com/go-chi/chi/v5",
	Limits: true,
	New: func(srv *http.Server, limits Limits) Server {
		return withMiddleware(srv, limits, ThrottleHandler(limits))
	},
}

// ThrottleHandler is the middleware of [Throttle].
func ThrottleHandler(limits Limits) func(http.Handler) http.Handler {
	return middleware.ThrottleWithOpts(middleware.ThrottleOpts{
		Limit:          limits.Slots,
		BacklogLimit:   limits.MaxQueue,
		BacklogTimeout: limits.MaxWait,
		// It sends none unless it is told what.
		RetryAfterFn: func(bool) time.Duration { return time.Second },
	})
}

// Bulkhead is failsafe-go's, which bounds the wait of requests, but not their
// number.
var Bulkhead = Contender{
	Name:   "failsafe-go Bulkhead",
	Module: "github.com/failsafe-go/failsafe-go",
	Limits: true,
	New: func(srv *http.Server, limits Limits) Server {
		return withMiddleware(srv, limits, BulkheadHandler(limits))
	},
}

// BulkheadHandler is the middleware of [Bulkhead].
func BulkheadHandler(limits Limits) func(http.Handler) http.Handler {
	b := bulkhead.NewBuilder[*http.Response](uint(limits.Slots)).WithMaxWaitTime(limits.MaxWait).Build()
	return func(next http.Handler) http.Handler {
		return failsafehttp.NewHandler(next, b)
	}
}

// withMiddleware has srv use m for requests that are not exempt.
func withMiddleware(srv *http.Server, limits Limits, m func(http.Handler) http.Handler) *http.Server {
	free, limited := srv.Handler, m(srv.Handler)
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if limits.Exempt != nil && limits.Exempt(r) {
			free.ServeHTTP(w, r)
			return
		}
		limited.ServeHTTP(w, r)
	})
	return srv
}

// Usher is usher.Server with Options.Fairness.
var Usher = Contender{
	Name:   "usher",
	Module: "github.com/seed-235859eb/usher",
	Limits: true,
	New: func(srv *http.Server, limits Limits) Server {
		return usher.Wrap(srv, usher.Options{
			Fairness: usher.FairnessOptions{
				Slots:     limits.Slots,
				MaxInline: limits.MaxInline,
				MaxQueue:  limits.MaxQueue,
				MaxWait:   limits.MaxWait,
				Exempt:    limits.Exempt,
			},
			Logger: slog.New(slog.DiscardHandler),
		})
	},
	QueueWait: usher.QueueWait,
}
