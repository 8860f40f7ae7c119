package limit

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// givesUpAt returns when the client of r gives up, as far as r says: its context
// has a deadline, or gRPC's header, or Options.GivesUpAt knows. Zero means that
// nothing is known.
func (l *Limiter) givesUpAt(r *http.Request) (at time.Time) {
	earlier := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if t, ok := r.Context().Deadline(); ok {
		earlier(t)
	}
	if d, ok := grpcTimeout(r); ok {
		earlier(time.Now().Add(d))
	}
	if l.opts.GivesUpAt != nil {
		earlier(l.opts.GivesUpAt(r))
	}
	return at
}

// grpcTimeout returns what the header grpc-timeout says: up to eight digits and
// a unit, counted from the arrival of the request.
func grpcTimeout(r *http.Request) (time.Duration, bool) {
	v := r.Header.Get("Grpc-Timeout")
	if len(v) < 2 || len(v) > 9 || strings.ContainsAny(v, "+-") {
		return 0, false
	}
	unit, ok := map[byte]time.Duration{
		'H': time.Hour, 'M': time.Minute, 'S': time.Second,
		'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
	}[v[len(v)-1]]
	n, err := strconv.ParseInt(v[:len(v)-1], 10, 64)
	if !ok || err != nil || time.Duration(n) > maxTimeout/unit {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

// maxTimeout is more than anybody waits, and can be added to the time.
const maxTimeout = 1000 * time.Hour
