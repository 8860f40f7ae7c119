package usher

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

// TestCutLooksCut: a handler that returns because its time was over must not
// have its response end as if it were whole (#12).
func TestCutLooksCut(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(w http.ResponseWriter) // what the handler writes before its context ends
		after  func(w http.ResponseWriter) // and after
		late   bool                        // the request begins after the stop
		whole  string                      // what the client must get; empty: an error
	}{
		{name: "stream", before: func(w http.ResponseWriter) { fmt.Fprint(w, "half"); w.(http.Flusher).Flush() }},
		{name: "late stream", late: true, before: func(w http.ResponseWriter) { fmt.Fprint(w, "half"); w.(http.Flusher).Flush() }},
		{name: "buffered, late", late: true, before: func(w http.ResponseWriter) { fmt.Fprint(w, "half") }},
		{name: "half of a length", before: func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "8")
			fmt.Fprint(w, "half")
			w.(http.Flusher).Flush()
		}},
		{name: "all of a length", whole: "half", before: func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "4")
			fmt.Fprint(w, "half")
			w.(http.Flusher).Flush()
		}},
		{name: "an answer", whole: "sorry", after: func(w http.ResponseWriter) { fmt.Fprint(w, "sorry") }},
		{name: "a late answer", late: true, whole: "sorry", after: func(w http.ResponseWriter) { fmt.Fprint(w, "sorry") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run(t, allModes, func(t *testing.T, m mode) {
				opts := quickly()
				opts.Shutdown.GracePeriod = 600 * time.Millisecond
				if tt.after != nil {
					opts.Shutdown.GracePeriod = 4 * time.Second // a fiftieth of it is for the answer
				}
				if tt.late {
					opts.Shutdown.Delay = time.Second // to connect in
					opts.Shutdown.GracePeriod += time.Second
				}
				begun := make(chan struct{})
				ts := startServer(t, m, opts, func(w http.ResponseWriter, r *http.Request) {
					if tt.before != nil {
						tt.before(w)
					}
					close(begun)
					<-r.Context().Done()
					if tt.after != nil {
						tt.after(w)
					}
				})
				var stopped <-chan error
				if tt.late {
					ts.awaitPhase(PhaseServing)
					stopped = ts.shutdown()
					ts.awaitPhase(PhaseLameDuck)
				}
				client := ts.client()
				type answer struct {
					body string
					err  error
				}
				got := make(chan answer, 1)
				go func() {
					body, err := ts.get(client, "/")
					client.CloseIdleConnections()
					got <- answer{body, err}
				}()
				select {
				case <-begun:
				case a := <-got:
					if a.err != nil {
						t.Fatalf("the request never began: %v", a.err)
					}
					got <- a
				}
				if !tt.late {
					stopped = ts.shutdown()
				}
				if err := <-stopped; !errors.Is(err, errGraceOver) && tt.name != "all of a length" { // whose client may leave
					t.Errorf("Shutdown: %v", err)
				}
				a := <-got
				if (a.err == nil) != (tt.whole != "") || a.err == nil && a.body != tt.whole {
					t.Errorf("the client got %q, %v", a.body, a.err)
				}
				if r := ts.balanced(); tt.whole == "" && !m.http2() && tt.name != "half of a length" && r.Cut != 1 {
					t.Errorf("report %+v", r)
				}
			})
		})
	}
}

// TestCutLooksCutToHTTP10, where only an error of the connection tells.
func TestCutLooksCutToHTTP10(t *testing.T) {
	for _, heeds := range []bool{true, false} { // the end of its context
		t.Run(fmt.Sprint("heeds=", heeds), func(t *testing.T) {
			opts := quickly()
			opts.Shutdown.GracePeriod = 500 * time.Millisecond
			begun, release := make(chan struct{}), make(chan struct{})
			ts := startServer(t, h1, opts, func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, "half")
				w.(http.Flusher).Flush()
				close(begun)
				if heeds {
					<-r.Context().Done()
				} else {
					<-release
				}
			})
			c := ts.dial()
			c.send("GET / HTTP/1.0\r\n\r\n")
			<-begun
			if err := ts.Shutdown(context.Background()); err == nil {
				t.Error("Shutdown returned nil")
			}
			resp, err := http.ReadResponse(bufio.NewReader(c.Conn), nil)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			if err == nil {
				t.Error("the response looks whole")
			}
			close(release)
		})
	}
}

// TestHardEndSaysGoodbye: a stop that is cut sends GOAWAY, and runs what was
// registered with the http.Server, once (#12).
func TestHardEndSaysGoodbye(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		opts := quickly()
		opts.Shutdown.GracePeriod = 500 * time.Millisecond
		begun, registered := make(chan struct{}), make(chan struct{}, 2)
		ts := startServer(t, m, opts, func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			<-r.Context().Done()
		})
		ts.http.RegisterOnShutdown(func() { registered <- struct{}{} })
		c := ts.dial()
		if m.http2() {
			c.getStream(1)
		} else {
			c.send(request)
		}
		<-begun
		if err := ts.Shutdown(context.Background()); err == nil {
			t.Error("Shutdown returned nil")
		}
		if m.http2() {
			c.readUntil("GOAWAY", isGoAway)
		}
		<-registered
		select {
		case <-registered:
			t.Error("it ran twice")
		default:
		}
	})
}
