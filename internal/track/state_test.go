package track

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"
)

// flags are those of a State, in the words of the table at State.after.
var flags = map[string]State{
	"waiting": waiting, "ahead": ahead, "idleDeadline": idleDeadline, "begun": begun,
	"started": started, "overTLS": overTLS, "isHTTP2": isHTTP2,
	"late": late, "clientDone": clientDone, "retired": retired, "cut": cut, "closed": closed,
}

var eventNames = [events]string{
	"readWaits", "readWaitsAhead", "readGoesOn", "bytesCame", "tlsCame", "prefaceCame", "clientClosed",
	"deadlineSet", "nowActive", "nowIdle", "nowHijacked", "http2Found", "stopFound", "retire", "cutOff", "close_",
}

// allStates calls f with every State: each reported state and each set of flags.
func allStates(f func(State)) {
	for reported := http.StateNew; reported <= http.StateHijacked; reported++ {
		for bits := State(0); bits < 1<<len(flags); bits++ {
			f(State(reported) | bits<<3)
		}
	}
}

// A rule is a line of the table at State.after.
type rule struct {
	e      event
	sets   []string
	clears []string
	only   func(s State) bool // nil: always
	to     http.ConnState     // what it reports, or -1
}

const same http.ConnState = -1

// is returns whether s was reported as one of the states.
func is(states ...http.ConnState) func(State) bool {
	return func(s State) bool {
		for _, r := range states {
			if int(s)%8 == int(r) {
				return true
			}
		}
		return false
	}
}

func has(s State, flag string) bool { return s&flags[flag] != 0 }

func both(a, b func(State) bool) func(State) bool {
	return func(s State) bool { return a(s) && b(s) }
}

func not(flag string) func(State) bool  { return func(s State) bool { return !has(s, flag) } }
func with(flag string) func(State) bool { return func(s State) bool { return has(s, flag) } }

var (
	between     = is(http.StateNew, http.StateIdle)
	notHijacked = is(http.StateNew, http.StateActive, http.StateIdle, http.StateClosed)
	ofARequest  = []string{"ahead", "idleDeadline", "begun"}
)

// rules say the same as the code in another way: each line that applies to the
// State before the event has its effect.
var rules = []rule{
	{readWaits, []string{"waiting"}, nil, nil, same},
	{readWaits, nil, []string{"ahead", "begun"}, both(between, not("isHTTP2")), same},
	{readWaitsAhead, []string{"waiting"}, nil, nil, same},
	{readWaitsAhead, []string{"ahead"}, nil, between, same},
	{readGoesOn, nil, []string{"waiting"}, nil, same},
	{bytesCame, []string{"started"}, nil, nil, same},
	{bytesCame, []string{"ahead"}, nil, between, same},
	{tlsCame, []string{"started", "overTLS", "ahead"}, nil, both(is(http.StateNew), not("started")), same},
	{prefaceCame, []string{"started", "isHTTP2", "ahead"}, nil, is(http.StateNew), same},
	{clientClosed, []string{"clientDone"}, nil, nil, same},
	{deadlineSet, []string{"idleDeadline"}, nil, is(http.StateIdle), same},
	{deadlineSet, []string{"begun"}, nil, both(is(http.StateIdle), with("idleDeadline")), same},
	{nowActive, nil, ofARequest, notHijacked, http.StateActive},
	{nowIdle, nil, ofARequest, notHijacked, http.StateIdle},
	{nowHijacked, nil, ofARequest, notHijacked, http.StateHijacked},
	{http2Found, []string{"isHTTP2"}, nil, nil, same},
	{stopFound, []string{"late"}, nil, is(http.StateActive), same},
	{retire, []string{"retired"}, nil, isQuiet, same},
	{cutOff, []string{"cut"}, nil, nil, same},
	{close_, []string{"closed"}, nil, nil, same},
}

// isQuiet says what State.Quiet is to answer: a Read waits on an open connection,
// between two requests, and nothing has come of the next.
func isQuiet(s State) bool {
	open := has(s, "waiting") && !has(s, "closed") && !has(s, "cut") && !has(s, "retired")
	silent := !has(s, "ahead") && (is(http.StateNew)(s) || !has(s, "begun"))
	if is(http.StateIdle)(s) && has(s, "isHTTP2") {
		silent = true // no stream is open
	}
	return between(s) && open && silent
}

func describe(s State) string {
	text := fmt.Sprint(http.ConnState(s % 8))
	for name, bit := range flags {
		if s&bit != 0 {
			text += " " + name
		}
	}
	return text
}

// TestAfter compares every State and every event with the rules.
func TestAfter(t *testing.T) {
	allStates(func(s State) {
		for e := range events {
			want := s
			for _, r := range rules {
				if r.e != e || r.only != nil && !r.only(s) {
					continue
				}
				for _, name := range r.sets {
					want |= flags[name]
				}
				for _, name := range r.clears {
					want &^= flags[name]
				}
				if r.to != same {
					want = want/8*8 + State(r.to)
				}
			}
			if got := s.after(e); got != want {
				t.Fatalf("%s, %s:\n got %s\nwant %s", describe(s), eventNames[e], describe(got), describe(want))
			}
		}
	})
}

// TestAnswers asks every State what it answers.
func TestAnswers(t *testing.T) {
	allStates(func(s State) {
		hijacked := is(http.StateHijacked)(s)
		answers := []struct {
			name      string
			got, want bool
		}{
			{"Quiet", s.Quiet(), isQuiet(s)},
			{"Detached", s.Detached(), has(s, "isHTTP2") || hijacked},
			{"HTTP2", s.HTTP2(), has(s, "isHTTP2")},
			{"Waits", s.Waits(), has(s, "waiting")},
			{"Fresh", s.Fresh(), is(http.StateNew)(s)},
			{"Closed", s.Closed(), has(s, "closed")},
			{"lingers", s.lingers(), is(http.StateActive)(s) &&
				!has(s, "isHTTP2") && !has(s, "clientDone") && !has(s, "retired") && !has(s, "cut")},
		}
		for _, a := range answers {
			if a.got != a.want {
				t.Fatalf("%s: %s = %v", describe(s), a.name, a.got)
			}
		}
		want := HungUp
		if has(s, "late") {
			want = Served
		}
		if has(s, "retired") {
			want = Idle
		}
		if hijacked {
			want = Hijacked
		}
		if has(s, "cut") {
			want = Cut
		}
		if got := s.fate(); got != want {
			t.Fatalf("%s: fate %d, want %d", describe(s), got, want)
		}
	})
}

// TestWalks follows connections through random events: whatever order they come
// in, some things hold.
func TestWalks(t *testing.T) {
	for range 20000 {
		var s State
		if rand.IntN(8) == 0 {
			s = waiting | ahead // opaque
		}
		var walk []event
		var stray bool // a byte has come, and the request that it belongs to has not begun
		for range 40 {
			e := event(rand.IntN(int(events)))
			before := s
			s = s.after(e)
			walk = append(walk, e)

			// What has ended stays so.
			for _, flag := range []string{"started", "overTLS", "isHTTP2", "late", "clientDone", "retired", "cut", "closed"} {
				if has(before, flag) && !has(s, flag) {
					t.Fatalf("%v: no longer %s", walk, flag)
				}
			}
			if is(http.StateHijacked)(before) && !is(http.StateHijacked)(s) {
				t.Fatalf("%v: no longer hijacked", walk)
			}
			if !is(http.StateNew)(before) && is(http.StateNew)(s) {
				t.Fatalf("%v: new again", walk)
			}
			// Only a quiet connection is retired, and then it is so no longer.
			if has(s, "retired") && !has(before, "retired") && !before.Quiet() {
				t.Fatalf("%v: retired, but not quiet", walk)
			}
			if s.Quiet() && (has(s, "retired") || has(s, "cut") || has(s, "closed")) {
				t.Fatalf("%v: quiet, but gone", walk)
			}
			if s.Quiet() && (!s.Waits() || !between(s)) {
				t.Fatalf("%v: quiet, but busy", walk)
			}
			// The bytes of a request keep the connection from being quiet until
			// a Read waits that knows of none.
			switch e {
			case bytesCame, tlsCame, prefaceCame, readWaitsAhead:
				stray = stray || between(before) && s != before
			case readWaits:
				stray = stray && has(before, "isHTTP2")
			case nowActive, nowIdle, nowHijacked:
				stray = false
			}
			if stray && s.Quiet() && !has(s, "isHTTP2") {
				t.Fatalf("%v: quiet, with a request begun", walk)
			}
			// It is one or the other that ends a connection.
			if s.lingers() && (s.Detached() || has(s, "retired") || has(s, "cut")) {
				t.Fatalf("%v: lingers", walk)
			}
		}
	}
}

// TestStatesAreDistinct: no two flags share a bit, and none is part of what
// net/http reports.
func TestStatesAreDistinct(t *testing.T) {
	seen := reportedMask
	for name, bit := range flags {
		if bit&(bit-1) != 0 || bit&seen != 0 {
			t.Errorf("%s is %b", name, bit)
		}
		seen |= bit
	}
	if http.StateClosed > http.ConnState(reportedMask) {
		t.Error("net/http reports more than the mask has room for")
	}
	if seen != closed<<1-1 {
		t.Errorf("flags without a name here: %b", (closed<<1-1)&^seen)
	}
}
