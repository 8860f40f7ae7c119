package limit

import (
	"context"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// TestNestedLimits: those who wait for a full route hold no slot of the server
// meanwhile, and take one again when they go on.
func TestNestedLimits(t *testing.T) {
	for _, tt := range []struct {
		name   string
		key    string
		around func(http.Handler) http.Handler
	}{
		{"plain", "", func(h http.Handler) http.Handler { return h }},
		{"FlowKey", "all", func(h http.Handler) http.Handler { return h }},
		{"TimeoutHandler between", "", func(h http.Handler) http.Handler { return http.TimeoutHandler(h, time.Hour, "") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubbles(t, func(t *testing.T, m mode) {
				const requests = 6
				server, route := newTestLimiter(3), newTestLimiter(1)
				full := tt.around(keyed(route, tt.key, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if n := server.Stats().Running; n < 1 || n > 3 {
						t.Errorf("one runs in the route, and %d in the server", n)
					}
					time.Sleep(time.Second)
				})))
				s := start(t, m, keyed(server, tt.key, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/full" {
						full.ServeHTTP(w, r)
					}
					io.WriteString(w, "")
				})))
				began := time.Now()
				var all []<-chan answer
				for range requests {
					all = append(all, s.send("/full", nil))
				}
				synctest.Wait()
				if st := server.Stats(); st.Running != 1 || route.Stats().Waiting != requests-1 {
					t.Errorf("%d of the server's slots are held while %d wait for the route", st.Running, route.Stats().Waiting)
				}
				if a := <-s.send("/", nil); a.err != nil || time.Since(began) > 0 {
					t.Errorf("another route: %v after %v", a.err, time.Since(began))
				}
				for _, got := range all {
					if a := <-got; a.err != nil {
						t.Error(a.err)
					}
				}
				if took := time.Since(began); took != requests*time.Second {
					t.Errorf("took %v, want %v", took, requests*time.Second)
				}
				synctest.Wait()
				for _, l := range []*Limiter{server, route} {
					if st := l.Stats(); st.Running != 0 || st.Waiting != 0 || st.Resuming != 0 {
						t.Errorf("left behind: %+v", st)
					}
				}
			})
		})
	}
}

// TestNestedLeftBehind: a handler that its request has left behind gives back no
// slot of the next request.
func TestNestedLeftBehind(t *testing.T) {
	inBubbles(t, func(t *testing.T, m mode) {
		server, route := newTestLimiter(1), newTestLimiter(1)
		hold := make(chan struct{})
		inner := http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/late" {
				time.Sleep(2 * time.Second) // its request has ended by now
			}
			limited(route, func(http.ResponseWriter, *http.Request) { <-hold }).ServeHTTP(w, r.WithContext(context.WithoutCancel(r.Context())))
		}), time.Second, "")
		s := start(t, m, limited(server, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/next" {
				time.Sleep(10 * time.Second)
				return
			}
			inner.ServeHTTP(w, r)
		}))
		client := s.client()
		get := func(path string) {
			scheme := "http"
			if m.tls() {
				scheme = "https"
			}
			if resp, err := client.Get(scheme + "://usher.test" + path); err == nil {
				resp.Body.Close()
			}
		}
		get("/hold") // takes the route's slot for good
		get("/late")
		done := make(chan struct{})
		go func() {
			get("/next") // over the same connection
			close(done)
		}()
		time.Sleep(5 * time.Second)
		if st := server.Stats(); st.Running != 1 || st.Yields != 0 || route.Stats().Waiting != 1 {
			t.Errorf("%+v; %d wait for the route", st, route.Stats().Waiting)
		}
		<-done
		close(hold)
		synctest.Wait()
		if st := server.Stats(); st.Running != 0 {
			t.Errorf("left behind: %+v", st)
		}
	})
}
