package track

import (
	"net/http"
	"testing"
)

const theBody = "0123456789"

// whens are when a request may come, or what is none.
var whens = []struct {
	name  string
	send  func(vis *visitor, text string)
	noise []string // what begins no request then
	// Over TLS, where lengths alone are seen:
	noiseTLS []string
	blind    func(n int) bool // whether the first n bytes of a request could be something else
}{
	{"first", func(vis *visitor, text string) {
		vis.send(text)
	}, []string{""}, []string{""}, func(int) bool { return false }},
	{"idle", func(vis *visitor, text string) {
		vis.ask(aGet)
		vis.answered()
		vis.consumed()
		vis.send(text)
	}, []string{""}, []string{""}, func(n int) bool { return n == 2 }},
	{"idle, behind a body", func(vis *visitor, text string) {
		vis.ask(aPost + theBody)
		vis.answered()
		vis.consumed()
		vis.send(text)
	}, []string{"\r\n", "\n", "\r", "\r\n\r", "\r\n\r\n"}, []string{"\r\n"}, func(n int) bool { return n == 2 }},
	{"idle, behind a body, byte by byte", func(vis *visitor, text string) {
		vis.ask(aPost + theBody)
		vis.answered()
		for i := range text {
			vis.consumed()
			vis.send(text[i : i+1])
		}
	}, []string{"\r\n", "\r\n\r\n"}, nil, func(int) bool { return false }},
	{"with a body", func(vis *visitor, text string) {
		vis.ask(aPost + theBody + text)
		vis.answered()
	}, []string{"", "\r\n", "\n", "\r\n\r", "\r\n\r\n"}, []string{"", "\r\n"}, func(n int) bool { return n < 4 }},
	{"with a body, on a used connection", func(vis *visitor, text string) {
		vis.ask(aGet)
		vis.answered()
		vis.ask(aPost + theBody + text)
		vis.answered()
	}, []string{"", "\r\n"}, []string{"", "\r\n"}, func(n int) bool { return n < 4 }},
	{"during the handler", func(vis *visitor, text string) {
		vis.ask(aPost + theBody)
		vis.send(text)
		eventually(vis.t, "the background read", func() bool { return vis.read.Load() > vis.sent.n.Load()-int64(len(text)) })
		vis.answered()
	}, []string{"\r\n", "\n", "\r\n\r", "\r\n\r\n"}, []string{"\r\n"}, func(n int) bool { return n < 4 }},
}

// TestHalfARequest: of whatever length it is, and however it came, its
// connection is not quiet.
func TestHalfARequest(t *testing.T) {
	for _, v := range visits(t) {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			h := v.host(t)
			for _, when := range whens {
				for n := 1; n < len(aGet); n++ {
					if v.tls && when.blind(n) || v.few && n > 4 && n%9 != 0 {
						continue
					}
					vis := h.visit()
					when.send(vis, aGet[:n])
					if st := vis.consumed(); st.Quiet() {
						t.Errorf("%s: quiet after %q: %s", when.name, aGet[:n], describe(st))
					}
					if vis.server.Retire() {
						t.Fatalf("%s: retired after %q", when.name, aGet[:n])
					}
					vis.ask(aGet[n:])
					vis.answered()
					vis.leave()
				}
			}
		})
	}
}

// TestSilence: a client that says nothing is quiet, and so is one that sends a
// CR LF behind a body.
func TestSilence(t *testing.T) {
	for _, v := range visits(t) {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			h := v.host(t)
			for _, when := range whens {
				noise := when.noise
				if v.tls {
					noise = when.noiseTLS
				}
				for _, text := range noise {
					vis := h.visit()
					when.send(vis, text)
					if st := vis.consumed(); !st.Quiet() {
						t.Errorf("%s: not quiet after %q: %s", when.name, text, describe(st))
					}
					vis.ask(aGet)
					vis.answered()
					if st := vis.consumed(); !st.Quiet() {
						t.Errorf("%s: not quiet after the request behind %q: %s", when.name, text, describe(st))
					}
					vis.leave()
				}
			}
		})
	}
}

// TestQuietSince: what comes between two requests and is none, as far as can be
// seen, may be the beginning of one. So it counts as a sign of life.
func TestQuietSince(t *testing.T) {
	for _, v := range visits(t)[:3] {
		h := v.host(t)
		vis := h.visit()
		vis.ask(aPost + theBody)
		vis.answered()
		vis.consumed()
		before := vis.server.set.Now()
		vis.send("\r\n")
		vis.consumed()
		if since := vis.server.QuietSince(); since < before {
			t.Errorf("%s: quiet since %v before the CR LF", v.name, before-since)
		}
		vis.leave()
	}
}

// TestQuietSinceOfHTTP2: frames that come while no stream is open are none of a
// request's.
func TestQuietSinceOfHTTP2(t *testing.T) {
	_, c := pair(t, "tcp")
	c.set.KeepTime()
	c.change(http2Found)
	c.Report(c, http.StateActive)
	c.Report(c, http.StateIdle)
	since := c.QuietSince()
	for range 2 {
		c.noteRead(make([]byte, 17)) // a PING
		c.wait(wholeBuffer)
	}
	if !c.State().Quiet() || c.QuietSince() != since {
		t.Errorf("quiet=%v since %v, became idle at %v", c.State().Quiet(), c.QuietSince(), since)
	}
}

// FuzzClient: whatever comes and whoever reads it, nothing panics, and once a
// byte of a request has come over plain text, the connection is not quiet until
// that request begins.
func FuzzClient(f *testing.F) {
	f.Add([]byte("\x00\x05GET /\x01\xff\x02\x03\x04\x01\xff\x00\x02\r\n\x01\xfd\x02\x03\x04\x01\xfe"))
	f.Add([]byte("\x00\x0ePRI * HTTP/2.0\x01\x00\x02\x03\x01\xff"))
	f.Add([]byte("\x00\x06\x16\x03\x01\x00\x01\x01\x01\xff\x00\x05\x17\x03\x03\x00\x35\x01\xff"))
	f.Fuzz(func(t *testing.T, script []byte) {
		var st State
		var cl client
		var request bool // a byte of one has come
		next := func() byte {
			if len(script) == 0 {
				return 0
			}
			b := script[0]
			script = script[1:]
			return b
		}
		for len(script) > 0 {
			switch next() % 5 {
			case 0:
				n := min(int(next()), len(script))
				if n == 0 {
					break
				}
				st = st.after(readGoesOn)
				for _, b := range script[:n] {
					request = request || between(st) && b != '\r' && b != '\n'
				}
				if e, ok := cl.came(st, script[:n]); ok {
					st = st.after(e)
				}
				script = script[n:]
			case 1:
				e := readWaits
				if cl.isAhead(st, wholeBuffer-255+int(next())) {
					e = readWaitsAhead
				}
				st = st.after(e)
				if st.Quiet() && request && st&(overTLS|isHTTP2) == 0 {
					t.Fatalf("quiet, with a request begun: %s, %+v", describe(st), cl)
				}
			case 2:
				cl.requestBegan()
				request = false
				st = st.after(nowActive)
			case 3:
				cl.requestEnded()
				st = st.after(nowIdle)
			case 4:
				st = st.after(deadlineSet)
			}
		}
	})
}
