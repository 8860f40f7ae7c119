package track

import "net/http"

// A State is what is known of a connection at one moment. Its lowest bits hold
// the state that net/http reported last; the others are flags.
type State uint32

const reportedMask State = 0x7

const (
	// waiting: a Read has found nothing and waits for the client.
	waiting State = 1 << (3 + iota)
	// ahead: part of the next request has been read, and only net/http or
	// crypto/tls have it.
	ahead
	// idleDeadline: net/http has set the deadline of this idle period.
	idleDeadline
	// begun: net/http has set it once more, and reads the next request.
	begun
	// started: at least one byte has been read.
	started
	// overTLS: the first byte was that of a TLS handshake.
	overTLS
	// isHTTP2: the connection speaks HTTP/2.
	isHTTP2
	// late: a request was running when the stop began, or began after that.
	late
	// clientDone: the client has closed its side.
	clientDone
	// retired: closed because it was quiet.
	retired
	// cut: closed because time is up.
	cut
	// closed: Close has been called.
	closed
)

// An event changes a State.
type event uint8

const (
	readWaits      event = iota // a Read has found nothing, nor is part of a request in a buffer above
	readWaitsAhead              // a Read has found nothing, and part of a request is in a buffer above
	readGoesOn                  // a Read that waited looks again
	bytesCame                   // the client sent something
	tlsCame                     // the first bytes are those of a TLS handshake
	prefaceCame                 // the first bytes are the preface of HTTP/2
	clientClosed                // the client has closed its side
	deadlineSet                 // net/http has set the read deadline
	nowActive                   // net/http reports http.StateActive
	nowIdle                     // net/http reports http.StateIdle
	nowHijacked                 // net/http reports http.StateHijacked
	http2Found                  // TLS has negotiated HTTP/2
	stopFound                   // a stop has begun, or the connection turned active after that
	retire                      // it is closed because it is quiet
	cutOff                      // it is closed because time is up
	close_                      // Close has been called
	events                      // how many there are
)

// after returns the State that follows s when e happens:
//
//	event           does                          but only
//	readWaits       +waiting −ahead −begun        − between requests, not HTTP/2
//	readWaitsAhead  +waiting +ahead               +ahead between requests
//	readGoesOn      −waiting
//	bytesCame       +started +ahead               +ahead between requests
//	tlsCame         +started +overTLS +ahead      new, nothing read so far
//	prefaceCame     +started +isHTTP2 +ahead      new
//	clientClosed    +clientDone
//	deadlineSet     +idleDeadline, then +begun    idle
//	nowActive       −ahead −idleDeadline −begun
//	nowIdle         −ahead −idleDeadline −begun
//	nowHijacked     −ahead −idleDeadline −begun
//	http2Found      +isHTTP2
//	stopFound       +late                         active
//	retire          +retired                      quiet
//	cutOff          +cut
//	close_          +closed
//
// "Between requests" means new or idle, as net/http reports it. The reported
// state changes with the three now… events, and never back from hijacked.
func (s State) after(e event) State {
	reported := s.Reported()
	between := reported == http.StateNew || reported == http.StateIdle
	switch e {
	case readWaits:
		s |= waiting
		if between && s&isHTTP2 == 0 {
			s &^= ahead | begun
		}
	case readWaitsAhead:
		s |= waiting
		if between {
			s |= ahead
		}
	case readGoesOn:
		s &^= waiting
	case bytesCame:
		s |= started
		if between {
			s |= ahead
		}
	case tlsCame:
		if reported == http.StateNew && s&started == 0 {
			s |= started | overTLS | ahead
		}
	case prefaceCame:
		if reported == http.StateNew {
			s |= started | isHTTP2 | ahead
		}
	case clientClosed:
		s |= clientDone
	case deadlineSet:
		switch {
		case reported != http.StateIdle:
		case s&idleDeadline == 0:
			s |= idleDeadline
		default:
			s |= begun
		}
	case nowActive:
		s = s.report(http.StateActive)
	case nowIdle:
		s = s.report(http.StateIdle)
	case nowHijacked:
		s = s.report(http.StateHijacked)
	case http2Found:
		s |= isHTTP2
	case stopFound:
		if reported == http.StateActive {
			s |= late
		}
	case retire:
		if s.Quiet() {
			s |= retired
		}
	case cutOff:
		s |= cut
	case close_:
		s |= closed
	}
	return s
}

func (s State) report(to http.ConnState) State {
	if s.Reported() == http.StateHijacked {
		return s
	}
	return s&^(reportedMask|ahead|idleDeadline|begun) | State(to)
}

// Reported returns the state that net/http reported last. A connection that is
// closed keeps the one that it had.
func (s State) Reported() http.ConnState { return http.ConnState(s & reportedMask) }

// Quiet reports whether the client has nothing under way, as far as this
// process can know: whether nobody can lose anything if the connection is
// closed now. An HTTP/2 connection is quiet while no stream is open, whatever
// frames of another kind come and go.
func (s State) Quiet() bool {
	if s&(waiting|retired|cut|closed) != waiting {
		return false
	}
	switch s.Reported() {
	case http.StateNew:
		return s&ahead == 0
	case http.StateIdle:
		return s&(ahead|begun) == 0 || s&isHTTP2 != 0
	}
	return false
}

// Detached reports whether the connection does not leave by an answer that
// says Connection: close: net/http ends HTTP/2 with a GOAWAY, and a hijacked
// connection is its handler's.
func (s State) Detached() bool {
	return s&isHTTP2 != 0 || s.Reported() == http.StateHijacked
}

// HTTP2 reports whether the connection speaks HTTP/2.
func (s State) HTTP2() bool { return s&isHTTP2 != 0 }

// Waits reports whether a Read has found nothing and waits for the client.
func (s State) Waits() bool { return s&waiting != 0 }

// Fresh reports whether no request has come so far, as far as net/http said.
func (s State) Fresh() bool { return s.Reported() == http.StateNew }

// Closed reports whether Close has been called. The connection may linger.
func (s State) Closed() bool { return s&closed != 0 }

// lingers reports whether Close must let the client read its last response
// before the descriptor is closed.
func (s State) lingers() bool {
	return s.Reported() == http.StateActive && s&(isHTTP2|clientDone|retired|cut) == 0
}

// A Fate is how a connection left after a stop had begun.
type Fate int

const (
	Served   Fate = iota // after a request that was running then, or began later
	HungUp               // its client closed it without a further request
	Idle                 // silent, and closed for that
	Hijacked             // closed by the handler that had taken it over
	Cut                  // still there when time was up
	Fates                // how many there are
)

// fate returns how a connection left that ends in s.
func (s State) fate() Fate {
	switch {
	case s&cut != 0:
		return Cut
	case s.Reported() == http.StateHijacked:
		return Hijacked
	case s&retired != 0:
		return Idle
	case s&late != 0:
		return Served
	default:
		return HungUp
	}
}
