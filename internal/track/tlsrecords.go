package track

// TLS record types (RFC 8446, section 5.1).
const (
	recordChangeCipherSpec = 20
	recordHandshake        = 22
	recordApplicationData  = 23
)

// tlsRecords follows the frames of the client's TLS records from the first
// byte on. It tells a client that has finished its handshake and says nothing,
// as browsers do that connect early, from one that is in the middle of a
// handshake or of its first request; crypto/tls tells neither without taking
// a lock that a handshake holds until it ends. And it tells whether a record
// is incomplete, of which crypto/tls keeps the beginning.
type tlsRecords struct {
	header   [5]byte
	have     uint8  // bytes of header
	spec     bool   // the client has changed its cipher, or pretended to
	finished bool   // up to TLS 1.2: it has sent its Finished since
	ended    bool   // with TLS 1.3: a record as long as a Finished has come
	app      uint8  // records of application data after that, the incomplete one included
	last     uint16 // length of the last record
	left     uint16 // bytes to the next header
	begins   bool   // a record has come, since the connection became idle, that may begin a request
}

// feed reads the client's next bytes.
func (r *tlsRecords) feed(p []byte) {
	for len(p) > 0 {
		if r.left > 0 {
			n := min(int(r.left), len(p))
			p = p[n:]
			r.left -= uint16(n)
			continue
		}
		n := copy(r.header[r.have:], p)
		r.have += uint8(n)
		p = p[n:]
		if int(r.have) < len(r.header) {
			return
		}
		r.have = 0
		before := r.last
		r.left = uint16(r.header[3])<<8 | uint16(r.header[4])
		r.last = r.left
		switch r.header[0] {
		case recordChangeCipherSpec:
			r.spec = true
		case recordHandshake:
			// With TLS 1.3 a second ClientHello may follow; it is longer.
			r.finished = r.finished || r.spec && r.last <= maxFinished
		case recordApplicationData:
			r.begins = r.begins || !r.harmless()
			if r.endsHandshake(before) {
				r.ended, r.app = true, 0
			} else if r.app < 255 {
				r.app++
			}
		}
	}
}

// endsHandshake reports whether the last record is the Finished of TLS 1.3, as
// far as its length tells, and that of the record before it. A client that is
// not asked for a certificate sends nothing else, one that has none sends an
// empty Certificate first, and one that has one a CertificateVerify as well.
func (r *tlsRecords) endsHandshake(before uint16) bool {
	if r.finished || r.ended || r.last != finished32 && r.last != finished48 {
		return false
	}
	return r.app != 1 || before == noCertificate
}

const (
	// maxFinished is the length of an encrypted Finished up to TLS 1.2: 16
	// bytes, and what the cipher adds, an HMAC of 48 bytes at most.
	maxFinished = 128

	// The lengths of an encrypted Finished of TLS 1.3, with hashes of 32 and of
	// 48 bytes: 4 bytes before it, and 17 after.
	finished32 = 4 + 32 + 17
	finished48 = 4 + 48 + 17

	// noCertificate is the length of an empty Certificate of TLS 1.3, and
	// fullRecord that of a record that the next one continues.
	noCertificate = 4 + 1 + 3 + 17
	fullRecord    = 1<<14 + 17
)

// The lengths of records that begin no request: CR LF with the ciphers of TLS
// 1.3 and the two kinds of TLS 1.2 that have no padding, and a KeyUpdate, which
// TLS 1.3 sends as application data. Five bytes of a request have the length of
// a KeyUpdate; net/http says when it has four.
const (
	crlf13    = 2 + 17
	crlf12    = 2 + 16
	crlf12GCM = 8 + 2 + 16
	keyUpdate = 5 + 17
)

// harmless reports whether the last record is too short to begin a request, or
// as long as what does not.
func (r *tlsRecords) harmless() bool {
	if r.finished {
		return r.last == crlf12 || r.last == crlf12GCM
	}
	return r.last == crlf13 || r.last == keyUpdate
}

// partial reports whether a record is incomplete.
func (r *tlsRecords) partial() bool { return r.left > 0 || r.have > 0 }

// silent reports whether the client has finished its handshake and sent
// nothing since, as far as lengths tell. With TLS 1.3 the end of the handshake
// looks like application data: a Finished, behind other records if the client
// was asked for a certificate, or one record with all of these in it.
func (r *tlsRecords) silent() bool {
	switch {
	case r.partial():
		return false
	case r.finished || r.ended:
		return r.app == 0
	}
	return r.app == 1 && r.last < fullRecord
}
