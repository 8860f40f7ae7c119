package goaway

import (
	"encoding/binary"
	"slices"
	"testing"
)

// pieces cuts p into pieces whose lengths are those of cuts, over and over.
func pieces(p, cuts []byte) (all [][]byte) {
	for i := 0; len(p) > 0; i++ {
		n := len(p)
		if len(cuts) > 0 {
			n = min(n, int(cuts[i%len(cuts)])+1)
		}
		all = append(all, p[:n])
		p = p[n:]
	}
	return all
}

// ends returns where in p frames end, if all of p is at hand.
func ends(p []byte) (at []int) {
	for end := 0; end+headerLen <= len(p); {
		end += headerLen + int(binary.BigEndian.Uint32(p[end:])>>8)
		if end <= len(p) {
			at = append(at, end)
		}
	}
	return at
}

func FuzzFrames(f *testing.F) {
	f.Add(append([]byte{0, 0, 3, 1, 0, 0, 0, 0, 0, 1, 2, 3}, goodbye...), []byte{0, 4})
	f.Add([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0}, []byte{})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		var got []int
		fr, at := afterBytes(0), 0
		for _, p := range pieces(stream, cuts) {
			for len(p) > 0 {
				n := fr.advance(p)
				if n < 1 || n > len(p) {
					t.Fatalf("advance took %d of %d bytes", n, len(p))
				}
				p = p[n:]
				if at += n; fr.between() {
					got = append(got, at)
				}
			}
		}
		if want := ends(stream); !slices.Equal(got, want) {
			t.Errorf("frames end at %v, want %v", got, want)
		}
	})
}

// TestPong: the acknowledgement is known however it comes, and nothing else is
// taken for it.
func TestPong(t *testing.T) {
	pong := slices.Concat([]byte{0, 0, 8, typePing, flagAck, 0, 0, 0, 0}, pingData[:])
	with := func(i int, b byte) []byte {
		p := slices.Clone(pong)
		p[i] = b
		return p
	}
	for _, tt := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"pong", pong, true},
		{"ping", with(4, 0), false},
		{"other data", with(16, 'x'), false},
		{"other type", with(3, 0), false},
		{"on a stream", with(8, 1), false},
		{"longer", append(with(2, 9), 0), false},
	} {
		for size := 1; size <= len(tt.frame); size++ {
			f := afterBytes(PrefaceLen)
			found := false
			for _, p := range pieces(append(make([]byte, PrefaceLen), tt.frame...), []byte{byte(size - 1)}) {
				for len(p) > 0 {
					p = p[f.advance(p):]
					found = found || f.between() && f.isPong()
				}
			}
			if found != tt.want {
				t.Errorf("%s in pieces of %d: %v, want %v", tt.name, size, found, tt.want)
			}
		}
	}
}

// TestGoodbye spells out what RFC 9113 asks for, sections 6.7 and 6.8.
func TestGoodbye(t *testing.T) {
	const want = "\x00\x00\x08\x07\x00\x00\x00\x00\x00" + "\x7f\xff\xff\xff" + "\x00\x00\x00\x00" +
		"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + "usherbye"
	if string(goodbye) != want {
		t.Errorf("got %q, want %q", goodbye, want)
	}
}
