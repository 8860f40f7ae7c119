package track

import (
	"math/rand/v2"
	"testing"
)

func record(typ byte, n int) []byte {
	return append([]byte{typ, 3, 3, byte(n >> 8), byte(n)}, make([]byte, n)...)
}

func records(rs ...[]byte) []byte {
	var all []byte
	for _, r := range rs {
		all = append(all, r...)
	}
	return all
}

func TestTLSRecords(t *testing.T) {
	hello := record(recordHandshake, 300)
	spec := record(recordChangeCipherSpec, 1)
	app := record(recordApplicationData, 50)
	finished := record(recordApplicationData, finished32)
	for _, tt := range []struct {
		name   string
		sent   []byte
		silent bool
	}{
		{"nothing", nil, false},
		{"hello", hello, false},
		{"half a hello", hello[:100], false},
		{"1.3 finished", records(hello, spec, app), true},
		{"1.3 without compatibility, finished", records(hello, app), true},
		{"1.3 retried hello", records(hello, spec, hello[:100]), false},
		{"1.3 request", records(hello, spec, app, app), false},
		{"1.3 first byte of a request", records(hello, spec, app, app[:1]), false},
		{"1.3 retried, finished", records(hello, spec, hello, finished), true},
		{"1.3 certificate", records(hello, spec, app, app, finished), true},
		{"1.3 part of the certificate", records(hello, spec, app, app), false},
		{"1.3 no certificate", records(hello, spec, app, finished), true},
		{"1.3 no certificate, and request", records(hello, spec, app, finished, app), false},
		{"1.3 certificate and request", records(hello, spec, app, app, finished, app), false},
		{"1.2 key exchange", records(hello, hello, spec), false},
		{"1.2 finished", records(hello, hello, spec, record(recordHandshake, 40)), true},
		{"1.2 request", records(hello, hello, spec, record(recordHandshake, 40), app), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 20 {
				var r tlsRecords
				for p := tt.sent; len(p) > 0; {
					n := 1 + rand.IntN(len(p))
					r.feed(p[:n])
					p = p[n:]
				}
				if got := r.silent(); got != tt.silent {
					t.Fatalf("silent = %v, want %v", got, tt.silent)
				}
			}
		})
	}
}

// FuzzTLSRecords: however the bytes are cut, the verdict is the same.
func FuzzTLSRecords(f *testing.F) {
	f.Add(records(record(recordHandshake, 10), record(recordApplicationData, 3)), uint16(7))
	f.Fuzz(func(t *testing.T, sent []byte, at uint16) {
		var whole, cut tlsRecords
		whole.feed(sent)
		n := int(at) % (len(sent) + 1)
		cut.feed(sent[:n])
		cut.feed(sent[n:])
		whole.header, cut.header = [5]byte{}, [5]byte{} // old bytes, of no meaning
		if whole != cut {
			t.Errorf("cut at %d: %+v, whole: %+v", n, cut, whole)
		}
	})
}
