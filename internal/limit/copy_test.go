package limit

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestHandlersAroundSee what a mux and a handler inside have learned of the
// request, whether it had a body, has waited, or neither.
func TestHandlersAroundSee(t *testing.T) {
	inBubbles(t, func(t *testing.T, m mode) {
		for _, depth := range []int{1, 2} {
			for _, key := range []string{"", "all"} {
				for _, waits := range []bool{false, true} {
					for _, body := range []string{"", "f=1"} {
						for _, panics := range []bool{false, true} {
							mux := http.NewServeMux()
							mux.HandleFunc("/hold", func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) })
							mux.HandleFunc("/things/{id}/{rest...}", func(w http.ResponseWriter, r *http.Request) {
								r.ParseForm()
								r.SetPathValue("own", "set")
								if panics {
									panic("ouch")
								}
							})
							h := http.Handler(mux)
							for range depth {
								h = keyed(newTestLimiter(1), key, h)
							}
							type ctxKey struct{}
							seen := make(chan string, 1)
							s := start(t, m, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
								r.SetPathValue("before", "mux")
								defer func() {
									if recover() != nil != panics && r.Pattern != "/hold" {
										t.Error("no panic")
									}
									if r.Pattern != "/hold" {
										seen <- fmt.Sprint(r.Pattern, " ", r.PathValue("id"), " ", r.PathValue("rest"), " ", r.PathValue("own"), " ", r.Form.Get("f"), " ", r.Context().Value(ctxKey{}))
									}
								}()
								h.ServeHTTP(w, r)
							}))
							if waits {
								s.send("/hold", nil)
								time.Sleep(time.Millisecond)
							}
							c := s.client()
							scheme := "http"
							if m.tls() {
								scheme = "https"
							}
							var rd io.Reader
							if body != "" {
								rd = strings.NewReader(body)
							}
							resp, err := c.Post(scheme+"://usher.test/things/7/a/b", "application/x-www-form-urlencoded", rd)
							if err != nil {
								t.Fatal(err)
							}
							resp.Body.Close()
							f := ""
							if body != "" {
								f = "1"
							}
							want := fmt.Sprint("/things/{id}/{rest...} 7 a/b set ", f, " <nil>")
							if got := <-seen; got != want {
								t.Errorf("%d limiters, key %q, waits %v, body %q, panics %v: outside is seen %q, want %q", depth, key, waits, body, panics, got, want)
							}
						}
					}
				}
			}
		}
	})
}
