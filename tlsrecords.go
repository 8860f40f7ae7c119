package usher

// TLS record types (RFC 8446, section 5.1).
const (
	recordChangeCipherSpec = 20
	recordHandshake        = 22
	recordApplicationData  = 23
)

// tlsRecords follows the frames of the client's TLS records from the first
// byte on, to tell a client that has finished its handshake and says nothing,
// as browsers do that connect early, from one that is in the middle of a
// handshake or of its first request. crypto/tls tells neither without taking
// a lock that a handshake holds until it ends.
type tlsRecords struct {
	header   [5]byte
	have     uint8 // bytes of header
	spec     bool  // the client has changed its cipher
	finished bool  // up to TLS 1.2: it has sent its Finished since
	app      uint8 // records of application data, the unfinished one included
	left     int32 // bytes to the next header
}

// feed reads the client's next bytes.
func (r *tlsRecords) feed(p []byte) {
	for len(p) > 0 {
		if r.left > 0 {
			n := min(int(r.left), len(p))
			p = p[n:]
			r.left -= int32(n)
			continue
		}
		n := copy(r.header[r.have:], p)
		r.have += uint8(n)
		p = p[n:]
		if int(r.have) < len(r.header) {
			return
		}
		r.have = 0
		r.left = int32(r.header[3])<<8 | int32(r.header[4])
		switch r.header[0] {
		case recordChangeCipherSpec:
			r.spec = true
		case recordHandshake:
			r.finished = r.finished || r.spec
		case recordApplicationData:
			if r.app < 255 {
				r.app++
			}
		}
	}
}

// silent reports whether the client has finished its handshake and sent
// nothing since. With TLS 1.3 the end of the handshake looks like application
// data: one record, or up to three if the client was asked for a certificate.
func (r *tlsRecords) silent(clientCerts bool) bool {
	if r.left > 0 || r.have > 0 {
		return false
	}
	switch {
	case r.finished:
		return r.app == 0
	case clientCerts:
		return 1 <= r.app && r.app <= 3
	default:
		return r.app == 1
	}
}
