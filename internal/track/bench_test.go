package track

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// BenchmarkRequest takes the steps that net/http takes for a request over
// HTTP/1, on a connection of package net and on one that is followed: a Read
// that waits, the header's deadlines, a background read that is aborted, and
// the deadlines of the idle connection.
func BenchmarkRequest(b *testing.B) {
	b.Run("bare", func(b *testing.B) {
		client, server := connect(b, "tcp")
		defer client.Close()
		defer server.Close()
		benchmarkRequest(b, client, server, func(http.ConnState) {})
	})
	b.Run("followed", func(b *testing.B) {
		client, server := pair(b, "tcp")
		benchmarkRequest(b, client, server, func(state http.ConnState) { server.Report(server, state) })
	})
}

func benchmarkRequest(b *testing.B, client, server net.Conn, report func(http.ConnState)) {
	request, buf := []byte(aGet), make([]byte, wholeBuffer)
	asks := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		answer := make([]byte, len(request))
		for range asks {
			client.Write(request)
			io.ReadFull(client, answer)
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		asks <- struct{}{}
		n, err := server.Read(buf)
		if err != nil {
			b.Fatal(err)
		}
		report(http.StateActive)
		server.SetReadDeadline(time.Time{}) // of the whole request
		server.SetReadDeadline(time.Time{}) // before the background read
		server.SetReadDeadline(longAgo)     // aborts it, before it began
		server.SetReadDeadline(time.Time{})
		server.Write(buf[:n])
		server.SetWriteDeadline(time.Time{})
		report(http.StateIdle)
		server.SetReadDeadline(time.Time{}) // of the idle connection
		server.SetReadDeadline(time.Time{}) // of the next header
	}
	close(asks)
	<-done
}

// BenchmarkSteps takes those of them that make no system call.
func BenchmarkSteps(b *testing.B) {
	b.Run("bare/deadlines", func(b *testing.B) {
		client, server := connect(b, "tcp")
		defer client.Close()
		defer server.Close()
		benchmarkDeadlines(b, server)
	})
	b.Run("followed/deadlines", func(b *testing.B) {
		_, server := pair(b, "tcp")
		benchmarkDeadlines(b, server)
	})
	response := make([]byte, 120)
	b.Run("bare/write", func(b *testing.B) {
		benchmarkWrite(b, struct{ net.Conn }{discard{}}, response)
	})
	b.Run("followed/write", func(b *testing.B) {
		benchmarkWrite(b, NewSet(nobody{}).Add(discard{}), response)
	})
	b.Run("followed/states", func(b *testing.B) {
		_, server := pair(b, "tcp")
		b.ReportAllocs()
		for b.Loop() {
			server.Report(server, http.StateActive)
			server.Report(server, http.StateIdle)
		}
	})
	b.Run("followed/wait", func(b *testing.B) {
		_, server := pair(b, "tcp")
		b.ReportAllocs()
		for b.Loop() {
			server.wait(wholeBuffer)
			server.change(readGoesOn)
		}
	})
}

func benchmarkDeadlines(b *testing.B, c net.Conn) {
	b.ReportAllocs()
	for b.Loop() {
		for range 6 {
			c.SetReadDeadline(time.Time{})
		}
		c.SetWriteDeadline(time.Time{})
	}
}

// TestStepsDoNotAllocate holds for the steps of each request, with a User and
// an Owner that hear of all.
func TestStepsDoNotAllocate(t *testing.T) {
	client, c := pair(t, "tcp")
	c.set.Want(Left | Quiet | Detached)
	c.set.KeepTime()
	u := &user{}
	u.hook.User = u
	c.Use(&u.hook)
	request, buf := []byte(aGet), make([]byte, wholeBuffer)
	if n := testing.AllocsPerRun(200, func() {
		client.Write(request)
		c.Read(buf)
		c.Report(c, http.StateActive)
		c.SetReadDeadline(time.Now().Add(later))
		c.HoldDeadlines()
		c.ReleaseDeadlines()
		c.SetReadDeadline(longAgo)
		c.SetReadDeadline(time.Time{})
		c.SetWriteDeadline(time.Now().Add(later))
		c.SetWriteDeadline(time.Time{})
		c.Report(c, http.StateIdle)
		c.wait(wholeBuffer)
		c.SetReadDeadline(longAgo) // aborts a Read that waits
		c.change(readGoesOn)
		c.SetReadDeadline(time.Time{})
	}); n != 0 {
		t.Errorf("%v allocations per request", n)
	}
	if u.between == 0 {
		t.Error("nobody heard of it")
	}
}

// A user remembers what it was told.
type user struct {
	hook            Hook
	between, inBody int
	ended, hijacked int
}

func (u *user) ReadWaits(between bool) {
	if between {
		u.between++
	} else {
		u.inBody++
	}
}

func (u *user) Ended(hijacked bool) {
	if hijacked {
		u.hijacked++
	} else {
		u.ended++
	}
}

// TestUser: what the user of a connection is told, and what not.
func TestUser(t *testing.T) {
	_, c := pair(t, "tcp")
	u, second := &user{}, &user{}
	u.hook.User, second.hook.User = u, second
	if !c.Use(&u.hook) || c.Use(&second.hook) {
		t.Fatal("the first user is not the one")
	}
	expect := func(when string, between, inBody, ended, hijacked int) {
		t.Helper()
		if got, want := [4]int{u.between, u.inBody, u.ended, u.hijacked}, [4]int{between, inBody, ended, hijacked}; got != want {
			t.Errorf("%s: between, in a body, ended, hijacked = %v, want %v", when, got, want)
		}
	}
	c.wait(wholeBuffer)
	expect("new", 0, 0, 0, 0)
	c.Report(c, http.StateActive)
	c.wait(wholeBuffer)
	expect("a body", 0, 1, 0, 0)
	c.wait(1)
	expect("a background read", 0, 1, 0, 0)
	c.wait(2)
	expect("the least of a body", 0, 2, 0, 0)
	u.inBody--
	c.Report(c, http.StateIdle)
	c.wait(wholeBuffer)
	expect("idle", 1, 1, 0, 0)
	c.wait(1)
	expect("a small buffer of an idle connection", 2, 1, 0, 0)
	c.Report(c, http.StateActive)
	c.Report(c, http.StateHijacked)
	expect("hijacked", 2, 1, 0, 1)
	c.wait(wholeBuffer)
	expect("a Read of the handler's", 2, 1, 0, 1)
	c.Close()
	c.Close()
	expect("closed twice", 2, 1, 1, 1)
	if *second != (user{hook: second.hook}) {
		t.Error("the second user was told")
	}
}

// discard is a connection to nobody.
type discard struct{ net.Conn }

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func benchmarkWrite(b *testing.B, c net.Conn, p []byte) {
	b.ReportAllocs()
	for b.Loop() {
		c.Write(p)
	}
}
