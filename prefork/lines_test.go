package prefork

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestLiner: however a stream comes in pieces, what comes out is whole lines, and
// all of them.
func TestLiner(t *testing.T) {
	var all bytes.Buffer
	for range 50 {
		n := rand.IntN(300)
		if rand.IntN(5) == 0 {
			n = rand.IntN(maxLine + 1)
		}
		all.WriteString(strings.Repeat("x", n) + "\n")
	}
	all.WriteString("no end")
	var l liner
	var got []byte
	for in := all.Bytes(); len(in) > 0; {
		n := min(len(in), 1+rand.IntN(20<<10))
		out := l.feed(in[:n])
		if len(out) > 0 && out[len(out)-1] != '\n' {
			t.Fatalf("not a whole line: %.100q", out)
		}
		got = append(got, out...)
		in = in[n:]
	}
	got = append(got, l.end()...)
	if want := all.String() + "\n"; string(got) != want {
		t.Errorf("%d bytes came out, want %d", len(got), len(want))
	}
	if more := l.end(); more != nil {
		t.Errorf("and %q", more)
	}
}

// TestLongLine: a line up to the limit is left alone; a longer one is cut into
// lines that say so, and never within a character.
func TestLongLine(t *testing.T) {
	for _, tt := range []struct {
		line   string
		pieces int
	}{
		{strings.Repeat("x", maxLine), 1},
		{strings.Repeat("x", maxLine+1), 2},
		{strings.Repeat("x", 3*maxLine+7), 4},
		{"x" + strings.Repeat("ü", maxLine), 3},
	} {
		for _, step := range []int{len(tt.line) + 1, 1000} {
			var l liner
			var got []byte
			for in := []byte(tt.line + "\n"); len(in) > 0; in = in[min(step, len(in)):] {
				got = append(got, l.feed(in[:min(step, len(in))])...)
			}
			pieces := strings.SplitAfter(strings.TrimSuffix(string(got), "\n"), "\n")
			if len(pieces) != tt.pieces {
				t.Errorf("%d bytes in steps of %d: %d pieces, want %d", len(tt.line), step, len(pieces), tt.pieces)
			}
			var whole strings.Builder
			for i, p := range pieces {
				if i < len(pieces)-1 && !strings.HasSuffix(p, cutMark) || !utf8.ValidString(p) {
					t.Errorf("piece %d ends in %.50q", i, p[len(p)-50:])
				}
				whole.WriteString(strings.TrimSuffix(p, cutMark))
			}
			if whole.String() != tt.line {
				t.Errorf("%d bytes came out, want %d", whole.Len(), len(tt.line))
			}
		}
	}
}
