package limit

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A choice is what a handler does with a deadline before it reads the body.
type choice struct {
	name string
	set  func(func(time.Time) error) error
	// left is how long the deadline has still to run when the handler begins.
	left func(timeout time.Duration) time.Duration
}

const forever = 1000 * time.Hour

var choices = []choice{
	{"kept", func(func(time.Time) error) error { return nil }, func(d time.Duration) time.Duration { return d }},
	{"set", func(f func(time.Time) error) error { return f(time.Now().Add(3 * time.Second)) }, func(time.Duration) time.Duration { return 3 * time.Second }},
	{"cleared", func(f func(time.Time) error) error { return f(time.Time{}) }, func(time.Duration) time.Duration { return forever }},
}

// nest puts h behind so many Limiters of one slot each.
func nest(depth int, h http.Handler) http.Handler {
	for range depth {
		h = limited(newTestLimiter(1), h.ServeHTTP)
	}
	return h
}

// The upload's second part comes at 200 ms, when another request has had the
// slot for 100 ms, and for 9.9 s to come. The deadlines stand still meanwhile.
const (
	heldAt   = 100 * time.Millisecond
	partAt   = 200 * time.Millisecond
	heldFor  = 10 * time.Second
	resumeAt = heldAt + heldFor
	timeout  = time.Second
)

// TestHandlersDeadlinesStay: what a handler has chosen, set or cleared, is still
// so when its slot was given back and taken again; the clock stands still while
// it waits to go on, and runs when it does.
func TestHandlersDeadlinesStay(t *testing.T) {
	inBubbles(t, func(t *testing.T, m mode) {
		for _, server := range []time.Duration{0, timeout} {
			for _, ch := range choices {
				for _, depth := range []int{1, 2} {
					for _, kind := range []string{"write", "read"} {
						left := ch.left(server)
						if left == 0 {
							left = forever
						}
						// The deadline has run for partAt when the wait begins.
						left -= partAt
						for _, late := range []bool{false, true} {
							pause := min(left-100*time.Millisecond, time.Hour)
							if late {
								if pause = left + 100*time.Millisecond; left > 10*time.Hour {
									continue
								}
							}
							name := fmt.Sprintf("%s deadline %s, timeout %v, %d limiters, pause %v", kind, ch.name, server, depth, pause)
							if got := uploadBesideHolder(t, m, server, ch, depth, kind, pause); (got == nil) == late {
								t.Errorf("%s: %v", name, got)
							}
						}
					}
				}
			}
		}
	})
}

// uploadBesideHolder returns what becomes of an upload whose handler pauses
// before it writes, or whose client pauses before it sends the rest, when the
// request has waited to go on.
func uploadBesideHolder(t *testing.T, m mode, server time.Duration, ch choice, depth int, kind string, pause time.Duration) error {
	t.Helper()
	began := time.Now()
	s := start(t, m, nest(depth, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			time.Sleep(heldFor)
			return
		}
		rc := http.NewResponseController(w)
		set := rc.SetWriteDeadline
		if kind == "read" {
			set = rc.SetReadDeadline
		}
		if err := ch.set(set); err != nil {
			t.Errorf("%v: set the %s deadline: %v", m, kind, err)
		}
		buf := make([]byte, 2)
		if _, err := io.ReadFull(r.Body, buf); err != nil {
			t.Errorf("the second part: %v", err)
		}
		if d := time.Since(began); d != resumeAt {
			t.Errorf("%v: the upload went on after %v, want %v", m, d, resumeAt)
		}
		if kind == "write" {
			time.Sleep(pause)
		}
		if _, err := io.ReadAll(r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "done")
	})), func(srv *http.Server) {
		if kind == "read" {
			srv.ReadTimeout = server
		} else {
			srv.WriteTimeout = server
		}
	})
	u := newUpload()
	u.at(0, 1)
	if kind == "read" {
		u.at(partAt, 1)
		u.endAt(resumeAt+pause, 1)
	} else {
		u.endAt(partAt, 1)
	}
	got := s.send("/upload", u)
	time.Sleep(heldAt)
	held := s.send("/hold", nil)
	a := <-got
	u.Close()
	if kind == "write" || server > 0 {
		<-held // it may have been late for a WriteTimeout of its own
	} else if h := <-held; h.err != nil {
		t.Errorf("the holder: %v", h.err)
	}
	if a.err == nil && a.body != "done" {
		t.Errorf("the upload got %q", a.body)
	}
	return a.err
}

// TestTimeoutsDoNotRunInTheQueue: neither at the start nor for a body that is
// larger than what HTTP/2 lets a client send unread.
func TestTimeoutsDoNotRunInTheQueue(t *testing.T) {
	inBubbles(t, func(t *testing.T, m mode) {
		const size = 8 << 20
		for _, key := range []string{"", "all"} {
			for _, depth := range []int{1, 2} {
				h := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/hold" {
						time.Sleep(700 * time.Millisecond)
						return
					}
					n, err := io.Copy(io.Discard, r.Body)
					fmt.Fprint(w, n, err)
				}))
				for range depth {
					h = keyed(newTestLimiter(1), key, h)
				}
				s := start(t, m, h, func(srv *http.Server) {
					srv.ReadTimeout, srv.WriteTimeout = 300*time.Millisecond, 300*time.Millisecond
				})
				s.send("/hold", nil)
				time.Sleep(time.Millisecond)
				if a := <-s.send("/", strings.NewReader(strings.Repeat("x", size))); a.err != nil || a.body != fmt.Sprint(size, " <nil>") {
					t.Errorf("key %q, %d limiters: got %q, %v", key, depth, a.body, a.err)
				}
			}
		}
	})
}

// TestReadTimeoutDoesNotRunInAWaitToGoOn: all of the body has come, or would if
// it were read, while the upload waits.
func TestReadTimeoutDoesNotRunInAWaitToGoOn(t *testing.T) {
	inBubbles(t, func(t *testing.T, m mode) {
		const size = 8 << 20
		s := start(t, m, nest(1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hold" {
				time.Sleep(heldFor)
				return
			}
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, err)
		})), func(srv *http.Server) { srv.ReadTimeout = timeout })
		u := newUpload()
		u.at(0, 1)
		u.endAt(partAt, size)
		got := s.send("/", u)
		time.Sleep(heldAt)
		s.send("/hold", nil)
		if a := <-got; a.err != nil || a.body != fmt.Sprint(size+1, " <nil>") {
			t.Errorf("got %q, %v", a.body, a.err)
		}
	})
}

// TestDeadlineBetweenLimiters: a handler that stands around another Limiter has
// chosen, and the request waits there.
func TestDeadlineBetweenLimiters(t *testing.T) {
	inBubbles(t, func(t *testing.T, m mode) {
		for _, ch := range choices[1:] {
			const left = 3 * time.Second // of the one that is set
			for _, late := range []bool{false, true} {
				pause := left - 100*time.Millisecond
				if late {
					pause = left + 100*time.Millisecond
				}
				inner := limited(newTestLimiter(1), func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/hold" {
						time.Sleep(heldFor)
						return
					}
					time.Sleep(pause)
					io.WriteString(w, "done")
				})
				outer := limited(newTestLimiter(10), func(w http.ResponseWriter, r *http.Request) {
					if err := ch.set(http.NewResponseController(w).SetWriteDeadline); err != nil {
						t.Error(err)
					}
					inner.ServeHTTP(w, r)
				})
				s := start(t, m, outer, func(srv *http.Server) { srv.WriteTimeout = timeout })
				s.send("/hold", nil)
				time.Sleep(heldAt)
				a := <-s.send("/", strings.NewReader("body"))
				if want := !late || ch.name == "cleared"; (a.err == nil) != want {
					t.Errorf("deadline %s, pause %v: got %q, %v", ch.name, pause, a.body, a.err)
				}
			}
		}
	})
}

// TestDeadlineSetWhileTheClockStands counts from the moment when it was set, as
// it was set.
func TestDeadlineSetWhileTheClockStands(t *testing.T) {
	inBubbles(t, func(t *testing.T, m mode) {
		const setAt, left = 5 * time.Second, 8 * time.Second
		ch := choice{name: "set meanwhile", set: func(f func(time.Time) error) error {
			time.AfterFunc(setAt, func() { f(time.Now().Add(left)) })
			return nil
		}}
		for _, server := range []time.Duration{0, timeout} {
			for _, kind := range []string{"write", "read"} {
				for _, late := range []bool{false, true} {
					pause := setAt + left - resumeAt - 100*time.Millisecond
					if late {
						pause += 200 * time.Millisecond
					}
					if got := uploadBesideHolder(t, m, server, ch, 1, kind, pause); (got == nil) == late {
						t.Errorf("%s deadline, timeout %v, pause %v: %v", kind, server, pause, got)
					}
				}
			}
		}
	})
}
