package track

import "net/http"

// A client is what the bytes that come from the client say. It is guarded by
// the readMu of its Conn.
type client struct {
	records tlsRecords // if it speaks TLS
	spoke   bool       // it has sent something after its TLS handshake

	preface uint8   // bytes of http2Preface seen; 255: something else
	full    int32   // the largest buffer offered between requests: net/http's whole buffer
	request bool    // part of a request has come since the last one
	stray   uint8   // CR and LF that have come since the last request, instead
	tail    [3]byte // the bytes that came last
}

// http2Preface is how a client says without TLS that it speaks HTTP/2.
const http2Preface = "PRI * HTTP/2.0"

// offered notes the size of a buffer that is read into between requests.
func (cl *client) offered(size int) { cl.full = max(cl.full, int32(min(size, 1<<30))) }

// came looks at p, which has just arrived, and returns the event that it makes,
// if any. A background read is net/http's; see isBackgroundRead.
func (cl *client) came(st State, p []byte, background bool) (e event, ok bool) {
	reported := st.Reported()
	between := reported == http.StateNew || reported == http.StateIdle
	first := reported == http.StateNew && st&started == 0
	switch {
	case st&overTLS != 0 || first && p[0] == recordHandshake:
		cl.records.feed(p)
		cl.spoke = cl.spoke || st&handshaken != 0
		if first {
			return tlsCame, true
		}
		return bytesCame, between && st&ahead == 0
	case st&isHTTP2 != 0:
		return bytesCame, between && st&ahead == 0
	}
	cl.noteTail(p)
	if between || background {
		cl.noteBetween(p)
	}
	if reported == http.StateNew && cl.isPreface(p) {
		return prefaceCame, true
	}
	return bytesCame, between && st&ahead == 0
}

func (cl *client) noteTail(p []byte) {
	if n := len(cl.tail); len(p) >= n {
		copy(cl.tail[:], p[len(p)-n:])
	} else {
		copy(cl.tail[:], cl.tail[len(p):])
		copy(cl.tail[n-len(p):], p)
	}
}

// noteBetween tells a request that begins from the CR and LF that old clients
// send behind a body (RFC 9112, section 2.2).
func (cl *client) noteBetween(p []byte) {
	for _, b := range p {
		switch {
		case cl.request:
			return
		case isCRLF(b) && cl.stray < 255:
			cl.stray++
		default:
			cl.request = true
		}
	}
}

func isCRLF(b byte) bool { return b == '\r' || b == '\n' }

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
	return int(cl.preface) == len(http2Preface)
}

// isAhead reports whether part of a request is in a buffer of net/http's or of
// crypto/tls, when a Read into a buffer of size bytes has to wait.
func (cl *client) isAhead(st State, size int) bool {
	reported := st.Reported()
	switch {
	case reported != http.StateNew && reported != http.StateIdle:
		return false
	case st&isHTTP2 != 0:
		return false
	case st&overTLS != 0:
		if cl.records.partial() {
			return true // the rest of this record is on its way
		}
		if reported == http.StateNew {
			return cl.spoke || !cl.records.silent()
		}
		return st&begun != 0 || cl.records.begins
	case cl.request:
		return true
	}
	// net/http reads into all the room its buffer has. Less room than before
	// means that the buffer holds something: what came behind the last request
	// in one piece with it, or by the background read.
	held := int(cl.full) - size
	if held <= int(cl.stray) {
		return false
	}
	if held > len(cl.tail) {
		return true
	}
	for _, b := range cl.tail[len(cl.tail)-held:] {
		if !isCRLF(b) {
			return true
		}
	}
	return false
}

// requestBegan forgets what belonged to the request before.
func (cl *client) requestBegan() { cl.request, cl.stray = false, 0 }

// requestEnded forgets the records of the request that has been answered.
func (cl *client) requestEnded() { cl.records.begins = false }
