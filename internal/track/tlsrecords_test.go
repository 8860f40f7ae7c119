package track

import (
	"math/rand/v2"
	"net/http"
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
	finishedLong := record(recordApplicationData, finished48)
	none := record(recordApplicationData, noCertificate)
	full := record(recordApplicationData, fullRecord)
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
		{"1.3 no certificate", records(hello, spec, none, finished), true},
		{"1.3 no certificate, long hash", records(hello, spec, none, finishedLong), true},
		{"1.3 no certificate, and request", records(hello, spec, none, finished, app), false},
		{"1.3 not asked, request like a Finished", records(hello, spec, finished, finished), false},
		{"1.3 not asked, request like a longer one", records(hello, spec, finished, finishedLong), false},
		{"1.3 not asked, two such", records(hello, spec, finished, finished, finishedLong), false},
		{"1.3 all in one record, request like a Finished", records(hello, spec, app, finished), false},
		{"1.3 first of a long chain", records(hello, spec, full), false},
		{"1.3 long chain", records(hello, spec, full, full, app, app), false},
		{"1.3 long chain, finished", records(hello, spec, full, full, app, app, finished), true},
		{"1.3 long chain, and request like a Finished", records(hello, spec, full, full, app, app, finished, finished), false},
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

// TestTLSRecordsThatBeginNothing: CR LF, as some clients send it behind a body,
// and a KeyUpdate.
func TestTLSRecordsThatBeginNothing(t *testing.T) {
	hello, spec := record(recordHandshake, 300), record(recordChangeCipherSpec, 1)
	tls13 := records(hello, spec, record(recordApplicationData, finished32))
	tls12 := records(hello, hello, spec, record(recordHandshake, 40))
	for _, tt := range []struct {
		name      string
		handshake []byte
		then      []int // lengths of records of application data
		begins    bool
	}{
		{"1.3 nothing", tls13, nil, false},
		{"1.3 CR LF", tls13, []int{crlf13}, false},
		{"1.3 KeyUpdate", tls13, []int{keyUpdate}, false},
		{"1.3 both, twice", tls13, []int{crlf13, keyUpdate, crlf13, keyUpdate}, false},
		{"1.3 one byte", tls13, []int{crlf13 - 1}, true},
		{"1.3 three bytes", tls13, []int{crlf13 + 1}, true},
		{"1.3 request behind CR LF", tls13, []int{crlf13, 100}, true},
		{"1.3 CR LF behind part of a request", tls13, []int{100, crlf13}, true},
		{"1.3 KeyUpdate behind part of a request", tls13, []int{20, keyUpdate}, true},
		{"1.2 CR LF", tls12, []int{crlf12}, false},
		{"1.2 CR LF, GCM", tls12, []int{crlf12GCM}, false},
		{"1.2 as long as with 1.3", tls12, []int{crlf13}, true},
		{"1.2 no KeyUpdate there", tls12, []int{keyUpdate}, true},
	} {
		var cl client
		cl.records.feed(tt.handshake)
		idle := State(http.StateIdle) | started | overTLS | idleDeadline
		cl.requestEnded()
		for _, n := range tt.then {
			cl.records.feed(record(recordApplicationData, n))
		}
		if got := cl.isAhead(idle, 512); got != tt.begins {
			t.Errorf("%s: begins = %v", tt.name, got)
		}
		if !cl.isAhead(idle|begun, 512) {
			t.Errorf("%s: net/http has four bytes, and nothing begins", tt.name)
		}
		cl.records.feed(record(recordApplicationData, crlf13)[:7])
		if !cl.isAhead(idle, 512) {
			t.Errorf("%s: half a record, and nothing begins", tt.name)
		}
		// What was answered is forgotten, but for the rest of a record.
		cl.records.feed(record(recordApplicationData, crlf13)[7:])
		cl.requestEnded()
		if cl.isAhead(idle, 512) {
			t.Errorf("%s: a request begins that has been answered", tt.name)
		}
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
