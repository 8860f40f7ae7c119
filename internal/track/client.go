package track

import "net/http"

// A client is what the bytes that come from the client say. It is guarded by
// the readMu of its Conn.
type client struct {
	records tlsRecords // if it speaks TLS
	preface uint8      // bytes of http2Preface seen; 255: something else
	beyond  int        // bytes that came in one piece with its end, behind it
	request bool       // part of a request has come since the last one began
	crlf    uint8      // how many of the bytes that came last are CR or LF, without a gap
}

// http2Preface is how a client says without TLS that it speaks HTTP/2.
const http2Preface = "PRI * HTTP/2.0"

// came looks at p, which has just arrived, and returns the event that it makes,
// if any.
func (cl *client) came(st State, p []byte) (e event, ok bool) {
	reported := st.Reported()
	between := reported == http.StateNew || reported == http.StateIdle
	first := reported == http.StateNew && st&started == 0
	switch {
	case first && p[0] == recordHandshake:
		cl.records.feed(p)
		return tlsCame, true
	case st&overTLS != 0:
		cl.records.feed(p)
	case st&isHTTP2 == 0:
		cl.note(p, between)
		if reported == http.StateNew && cl.isPreface(p) {
			return prefaceCame, true
		}
	}
	return bytesCame, between && st&ahead == 0
}

// note tells a request that begins, if one can now, from the CR and LF that old
// clients send behind a body (RFC 9112, section 2.2).
func (cl *client) note(p []byte, begins bool) {
	for _, b := range p {
		switch {
		case b != '\r' && b != '\n':
			cl.crlf = 0
			cl.request = cl.request || begins
		case cl.crlf < 255:
			cl.crlf++
		}
	}
}

// isPreface reports whether p ends the preface of HTTP/2.
func (cl *client) isPreface(p []byte) bool {
	have := int(cl.preface)
	if have >= len(http2Preface) {
		return false
	}
	n := min(len(p), len(http2Preface)-have)
	if string(p[:n]) != http2Preface[have:have+n] {
		cl.preface = 255
		return false
	}
	cl.preface += uint8(n)
	cl.beyond = len(p) - n
	return int(cl.preface) == len(http2Preface)
}

// isAhead reports whether part of a request is in a buffer of net/http's or of
// crypto/tls, when a Read into a buffer of size bytes has to wait.
//
// Over TLS it sees lengths alone. Up to three bytes of a request that came while
// the one before was still answered, and two that come by themselves and could
// be CR LF, are not seen.
func (cl *client) isAhead(st State, size int) bool {
	reported := st.Reported()
	switch {
	case reported != http.StateNew && reported != http.StateIdle, st&isHTTP2 != 0:
		return false
	case st&overTLS != 0 && reported == http.StateNew:
		return !cl.records.silent()
	case st&overTLS != 0:
		return st&begun != 0 || cl.records.begins || cl.records.partial()
	case cl.request || reported == http.StateNew:
		return cl.request
	case st&begun != 0 && cl.crlf < 4:
		return true // net/http has read whole lines of it
	}
	// What is not free in net/http's buffer came behind the last request in one
	// piece with it, or by a background read.
	held := wholeBuffer - size
	return held < 0 || held > int(cl.crlf)
}

// requestBegan forgets what belonged to the request before.
func (cl *client) requestBegan() { cl.request = false }

// requestEnded forgets the records of the request that has been answered.
func (cl *client) requestEnded() { cl.records.begins = false }
