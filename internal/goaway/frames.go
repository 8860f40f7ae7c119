package goaway

import "encoding/binary"

// Of HTTP/2's frames (RFC 9113, section 4.1), as far as they are looked at.
const (
	headerLen = 9

	typeHeaders  = 1
	typeSettings = 4
	typePing     = 6
	typeGoAway   = 7

	flagAck = 1

	pingLen   = 8
	goAwayLen = 8 // without debug data
)

// frames follows a stream of frames, in pieces of any size, and knows where
// one frame ends and the next begins.
type frames struct {
	head [headerLen]byte // of the frame at hand, or of the last one
	have int             // bytes of head that have come; 0 between two frames
	left int             // bytes of the payload to come

	payload [pingLen]byte // of a frame that is as long as a PING
}

// afterBytes returns what follows a stream in which n bytes come before the
// first frame.
func afterBytes(n int) frames {
	if n == 0 {
		return frames{}
	}
	return frames{have: headerLen, left: n}
}

// advance takes in what p has of the frame at hand, and returns how much that
// is. If the frame ends there, then between reports true, and typ, is and
// payload are those of that frame.
func (f *frames) advance(p []byte) int {
	n := 0
	switch {
	case f.have == headerLen:
	case f.have == 0 && len(p) >= headerLen: // all but always
		f.head = [headerLen]byte(p)
		f.have, n = headerLen, headerLen
		f.left = int(p[0])<<16 | int(p[1])<<8 | int(p[2])
	default:
		n = copy(f.head[f.have:], p)
		if f.have += n; f.have < headerLen {
			return n
		}
		f.left = f.length()
	}
	k := min(f.left, len(p)-n)
	if f.left <= pingLen && f.length() == pingLen {
		copy(f.payload[pingLen-f.left:], p[n:n+k])
	}
	if f.left -= k; f.left == 0 {
		f.have = 0
	}
	return n + k
}

// between reports whether the next byte begins a frame.
func (f *frames) between() bool { return f.have == 0 }

func (f *frames) length() int { return int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2]) }

func (f *frames) typ() byte { return f.head[3] }

func (f *frames) isAck() bool { return f.head[4]&flagAck != 0 }

func (f *frames) stream() uint32 { return binary.BigEndian.Uint32(f.head[5:]) &^ (1 << 31) }

// pingData is how the acknowledgement of this package's PING is known.
var pingData = [pingLen]byte{'u', 's', 'h', 'e', 'r', 'b', 'y', 'e'}

// isPong reports whether the frame that has just ended acknowledges that PING.
func (f *frames) isPong() bool {
	return f.typ() == typePing && f.isAck() && f.length() == pingLen && f.stream() == 0 && f.payload == pingData
}

// goodbye is a GOAWAY that names the highest stream there can be, so that no
// stream is refused, and a PING behind it.
var goodbye = func() []byte {
	b := []byte{0, 0, goAwayLen, typeGoAway, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0}
	b = append(b, 0, 0, pingLen, typePing, 0, 0, 0, 0, 0)
	return append(b, pingData[:]...)
}()
