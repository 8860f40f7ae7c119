package limit

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// TestReaderLeftBehindWaits: a handler returns while a goroutine of its has read
// some of the body and waits for a slot to go on. The deadlines of the request
// are nobody's to set any more.
func TestReaderLeftBehindWaits(t *testing.T) {
	inBubbles(t, func(t *testing.T, m mode) {
		l := New(Options{Slots: 1, MaxInline: 1, MaxQueue: 10, MaxWait: time.Hour})
		read := make(chan any, 1)
		s := start(t, m, limited(l, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/other" {
				time.Sleep(10 * time.Second)
				return
			}
			go func() {
				defer func() { read <- recover() }()
				r.Body.Read(make([]byte, 1))
			}()
			time.Sleep(5 * time.Second)
		}), func(srv *http.Server) { srv.ReadTimeout, srv.WriteTimeout = time.Hour, time.Hour })
		body := newUpload()
		got := s.send("/", body)
		time.Sleep(time.Second)
		synctest.Wait() // the read has given the slot back
		other := s.send("/other", nil)
		body.at(time.Second, 1)
		body.endAt(6*time.Second, 1)
		if panicked := <-read; panicked != nil {
			t.Errorf("the read panicked: %v", panicked)
		}
		<-got
		if a := <-other; a.err != nil {
			t.Errorf("the other request: %v", a.err)
		}
	})
}
