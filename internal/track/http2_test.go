package track

import (
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/goaway"
	"github.com/seed-235859eb/usher/internal/memnet"
)

const (
	hello    = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	aStream  = "\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82"
	pong     = "\x00\x00\x08\x06\x01\x00\x00\x00\x00usherbye"
	goodbye  = "\x00\x00\x08\x07\x00\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x00\x00" +
		"\x00\x00\x08\x06\x00\x00\x00\x00\x00usherbye"
)

// TestLeaveHTTP2: an HTTP/2 connection without TLS says goodbye, however its
// preface comes; no other does.
func TestLeaveHTTP2(t *testing.T) {
	for _, tt := range []struct {
		name   string
		came   []string
		follow bool
		report []http.ConnState
		want   string // besides SETTINGS
		http2  uint64
		one    uint64
	}{
		{"by pieces", []string{hello[:14], hello[14:], settings, aStream}, true, nil, goodbye, 1, 0},
		{"in one piece", []string{hello + settings + aStream}, true, nil, goodbye, 1, 0},
		{"not followed", []string{hello + settings + aStream}, false, nil, "", 1, 1},
		{"hijacked", []string{hello + settings + aStream}, true, []http.ConnState{http.StateActive, http.StateHijacked}, "", 1, 1},
		{"HTTP/1", []string{"GET / HTTP/1.1\r\n\r\n"}, true, []http.ConnState{http.StateActive}, "", 0, 0},
	} {
		for _, late := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				client, server := memnet.Pipe()
				set := NewSet(nobody{})
				if tt.follow {
					set.FollowFrames()
				}
				c := set.Add(server)
				g := new(goaway.Group)
				g.Begun()
				set.BeginStop()
				if late {
					set.LeaveHTTP2(g)
				}
				buf := make([]byte, 4096)
				for _, p := range tt.came {
					io.WriteString(client, p)
					if _, err := c.Read(buf); err != nil {
						t.Fatal(err)
					}
				}
				for _, state := range tt.report {
					c.Report(c, state)
				}
				io.WriteString(c, settings)
				if !late {
					set.LeaveHTTP2(g)
				}
				synctest.Wait()
				if g.Through() != (tt.want == "") {
					t.Errorf("%s, late %v: on the first step: %v", tt.name, late, !g.Through())
				}
				if tt.want != "" {
					io.WriteString(client, pong)
					c.Read(buf)
					if !g.Through() {
						t.Errorf("%s, late %v: the answer is not seen", tt.name, late)
					}
				}
				c.Close()
				got, err := io.ReadAll(client)
				client.Close()
				synctest.Wait() // for a linger
				if err != nil || string(got) != settings+tt.want {
					t.Errorf("%s, late %v: wrote %q, %v", tt.name, late, got, err)
				}
				if n := set.Counts(); n.HTTP2 != tt.http2 || n.OneStep != tt.one {
					t.Errorf("%s, late %v: %d left, %d of them in one step, want %d and %d", tt.name, late, n.HTTP2, n.OneStep, tt.http2, tt.one)
				}
			})
		}
	}
}

// TestLeaveHTTP2AndClose: a connection that ends is not waited for.
func TestLeaveHTTP2AndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := memnet.Pipe()
		set := NewSet(nobody{})
		set.FollowFrames()
		c := set.Add(server)
		io.WriteString(client, hello+settings+aStream)
		c.Read(make([]byte, 4096))
		g := new(goaway.Group)
		g.Begun()
		set.LeaveHTTP2(g)
		if g.Through() {
			t.Error("not on the first step")
		}
		began := time.Now()
		c.Close()
		client.Close()
		if !g.Through() || time.Since(began) != 0 {
			t.Error("on the first step after Close")
		}
	})
}
