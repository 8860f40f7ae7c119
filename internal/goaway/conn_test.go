package goaway

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func frame(typ byte, stream byte, payload ...byte) []byte {
	n := len(payload)
	return append([]byte{byte(n >> 16), byte(n >> 8), byte(n), typ, 0, 0, 0, 0, stream}, payload...)
}

var (
	settings = frame(typeSettings, 0)
	headers  = frame(typeHeaders, 1, 0x82)
	data     = frame(0, 1, 1, 2, 3, 4, 5)
	pong     = slices.Concat([]byte{0, 0, 8, typePing, flagAck, 0, 0, 0, 0}, pingData[:])
)

// wire keeps what is written.
type wire struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

// take returns what has been written since the last call.
func (w *wire) take() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Clone(append([]byte(nil), w.buf.Next(w.buf.Len())...))
}

// newConn returns a connection that has had a stream, and what it writes to.
func newConn(t *testing.T) (*Conn, *wire, *Group) {
	w := new(wire)
	c := New(w, 0)
	c.Came(make([]byte, PrefaceLen))
	c.Came(slices.Concat(settings, headers))
	if n, err := c.Write(settings); n != len(settings) || err != nil {
		t.Fatal(n, err)
	}
	w.take()
	return c, w, newGroup()
}

func newGroup() *Group {
	g := new(Group)
	g.Begun()
	return g
}

func wrote(t *testing.T, w *wire, what string, want ...[]byte) {
	t.Helper()
	if got, want := w.take(), slices.Concat(want...); !bytes.Equal(got, want) {
		t.Errorf("%s: wrote %v, want %v", what, got, want)
	}
}

func underway(t *testing.T, g *Group, want bool) {
	t.Helper()
	if got := !g.Through(); got != want {
		t.Errorf("on the first step: %v, want %v", got, want)
	}
}

// TestGroupThatHasNotBegun: not all connections have been told.
func TestGroupThatHasNotBegun(t *testing.T) {
	g := new(Group)
	underway(t, g, true)
	g.Begun()
	underway(t, g, false)
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w, g := newConn(t)
		changed := 0
		g.Changed = func() { changed++ }
		underway(t, g, false)
		c.Leave(g)
		c.Leave(g)
		synctest.Wait()
		wrote(t, w, "between frames", goodbye)
		underway(t, g, true)
		c.Write(data)
		wrote(t, w, "then", data)
		c.Came(pong)
		underway(t, g, false)
		c.Close()
		if changed != 1 {
			t.Errorf("told %d times", changed)
		}
		time.Sleep(time.Minute)
		underway(t, g, false)
	})
}

// TestLeaveInAFrame: the goodbye waits for its end.
func TestLeaveInAFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w, g := newConn(t)
		c.Write(data[:3])
		c.Leave(g)
		synctest.Wait()
		c.Write(data[3:12])
		wrote(t, w, "in the frame", data[:12])
		c.Write(slices.Concat(data[12:], data))
		wrote(t, w, "at its end", data[12:], goodbye, data)
		c.Write(data)
		wrote(t, w, "then", data)
	})
}

// TestLeaveWithoutAnswer: a client that does not acknowledge is waited for a
// second.
func TestLeaveWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w, g := newConn(t)
		c.Leave(g)
		time.Sleep(answerTime - 1)
		synctest.Wait()
		wrote(t, w, "at once", goodbye)
		underway(t, g, true)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		underway(t, g, false)
		c.Came(pong)
		c.Close()
		underway(t, g, false)
	})
}

// TestLeaveBeforeTheFirstStream: a client that has just connected comes to send
// its request.
func TestLeaveBeforeTheFirstStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fresh := func() (*Conn, *wire, *Group) {
			w := new(wire)
			c := New(w, 14)
			c.Came(make([]byte, PrefaceLen-14))
			c.Came(settings)
			c.Write(settings)
			w.take()
			return c, w, newGroup()
		}
		c, w, g := fresh()
		c.Leave(g)
		time.Sleep(firstTime - 1)
		synctest.Wait()
		wrote(t, w, "before the first stream")
		underway(t, g, true)
		c.Came(headers)
		synctest.Wait()
		wrote(t, w, "then", goodbye)
		time.Sleep(answerTime - 1)
		underway(t, g, true)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		underway(t, g, false)

		c, w, g = fresh()
		c.Leave(g)
		time.Sleep(firstTime)
		synctest.Wait()
		wrote(t, w, "without one", goodbye)
		underway(t, g, true)
		c.Came(pong)
		underway(t, g, false)
	})
}

// TestSettingsComeFirst: nothing may come before the server's SETTINGS.
func TestSettingsComeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, g := new(wire), newGroup()
		c := New(w, PrefaceLen)
		c.Came(headers)
		c.Leave(g)
		synctest.Wait()
		wrote(t, w, "before SETTINGS")
		c.Write(slices.Concat(settings, data))
		wrote(t, w, "then", settings, goodbye, data)
	})
}

// TestNothingToAdd: after a GOAWAY, or where something else than HTTP/2 is
// spoken, there is nothing to say, and nothing to wait for.
func TestNothingToAdd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goAway := frame(typeGoAway, 0, 0, 0, 0, 1, 0, 0, 0, 0)
		c, w, g := newConn(t)
		c.Write(goAway)
		c.Leave(g)
		synctest.Wait()
		wrote(t, w, "after GOAWAY", goAway)
		underway(t, g, false)

		c, w, g = newConn(t)
		c.Write(goAway[:5])
		c.Leave(g)
		synctest.Wait()
		c.Write(slices.Concat(goAway[5:], data))
		wrote(t, w, "in GOAWAY", goAway, data)
		underway(t, g, false)

		c, w, g = newConn(t)
		c.Close()
		c.Leave(g)
		synctest.Wait()
		wrote(t, w, "after Close")
		underway(t, g, false)

		w, g = new(wire), newGroup()
		c = New(w, PrefaceLen)
		c.Came(headers)
		c.Leave(g)
		const http1 = "HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n"
		io.WriteString(c, http1)
		c.Write([]byte(http1))
		wrote(t, w, "HTTP/1", []byte(http1), []byte(http1))
	})
}

// stuck blocks in Write until it is let go.
type stuck struct {
	entered, release chan struct{}
	wire
}

func (s *stuck) Write(p []byte) (int, error) {
	s.entered <- struct{}{}
	<-s.release
	return s.wire.Write(p)
}

// TestClientThatDoesNotRead: it delays nobody, and hears goodbye when it reads.
func TestClientThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &stuck{entered: make(chan struct{}, 9), release: make(chan struct{})}
		c, g := New(w, PrefaceLen), newGroup()
		c.Came(headers)
		written := make(chan error, 1)
		go func() {
			_, err := c.Write(settings)
			written <- err
		}()
		<-w.entered
		began := time.Now()
		c.Leave(g)
		if d := time.Since(began); d != 0 {
			t.Errorf("Leave took %v", d)
		}
		synctest.Wait()
		time.Sleep(answerTime / 2)
		underway(t, g, true)
		close(w.release)
		if err := <-written; err != nil {
			t.Error(err)
		}
		wrote(t, &w.wire, "once it reads", settings, goodbye)

		// In the goodbye itself.
		w = &stuck{entered: make(chan struct{}, 9), release: make(chan struct{})}
		c, g = New(w, PrefaceLen), newGroup()
		c.out, c.started = frames{}, true
		c.Came(headers)
		c.Leave(g)
		<-w.entered
		time.Sleep(answerTime)
		synctest.Wait()
		underway(t, g, false)
		close(w.release)
	})
}

// FuzzWrite: whenever the connection is to leave, however the bytes are cut,
// and however often a write ends early: what net/http writes arrives whole, and
// the goodbye stands once, between two frames, behind SETTINGS and before any
// GOAWAY.
func FuzzWrite(f *testing.F) {
	f.Add([]byte{typeHeaders, 2, 0, 200, typeGoAway, 8}, []byte{3}, uint8(1), []byte{2})
	f.Add([]byte{0, 255, 0, 3}, []byte{100}, uint8(0), []byte{})
	f.Add([]byte{}, []byte{}, uint8(9), []byte{9, 9})
	f.Add([]byte{0, 5}, []byte{}, uint8(0), []byte{2}) // ends before the goodbye
	f.Fuzz(func(t *testing.T, kinds, cuts []byte, leave uint8, short []byte) {
		stream := slices.Clone(settings)
		for i := 0; i+1 < len(kinds); i += 2 {
			stream = append(stream, frame(kinds[i], 1, make([]byte, int(kinds[i+1]))...)...)
		}
		w := &early{short: short}
		c, g := New(w, PrefaceLen), newGroup()
		c.streamed.Store(true)
		for i, p := range pieces(stream, cuts) {
			if i == int(leave) {
				c.group.Store(g)
				g.underway.Add(1)
				c.step.CompareAndSwap(serving, due)
				c.say()
			}
			// As net/http does with its timeout for writes.
			for tries := 0; len(p) > 0; tries++ {
				n, err := c.Write(p)
				if n < 0 || n > len(p) || err == nil && n < len(p) || tries > 1000 {
					t.Fatalf("Write: %d of %d, %v", n, len(p), err)
				}
				p = p[n:]
			}
		}
		got := w.Bytes()
		at := bytes.Index(got, goodbye)
		if at < 0 {
			if !bytes.HasPrefix(stream, got) && !bytes.Equal(got, stream) && len(c.rest) == 0 {
				t.Fatalf("wrote %v, want %v", got, stream)
			}
			return
		}
		without := slices.Concat(got[:at], got[at+len(goodbye):])
		if !bytes.Equal(without, stream) {
			t.Fatalf("wrote %v besides the goodbye, want %v", without, stream)
		}
		bounds := ends(stream)
		if !slices.Contains(bounds, at) {
			t.Fatalf("the goodbye stands at %d, frames end at %v", at, bounds)
		}
		for i, b := range bounds {
			if b > at {
				break
			}
			begin := 0
			if i > 0 {
				begin = bounds[i-1]
			}
			if stream[begin+3] == typeGoAway {
				t.Fatalf("the goodbye stands at %d, behind a GOAWAY at %d", at, begin)
			}
		}
	})
}

// early writes fewer bytes than it should, as many times as short has elements.
type early struct {
	bytes.Buffer
	short []byte
}

func (w *early) Write(p []byte) (int, error) {
	if len(w.short) == 0 {
		return w.Buffer.Write(p)
	}
	n := min(len(p), int(w.short[0]))
	w.short = w.short[1:]
	w.Buffer.Write(p[:n])
	if n == len(p) {
		return n, nil
	}
	return n, os.ErrDeadlineExceeded
}

// TestWriteFails: an error reaches net/http.
func TestWriteFails(t *testing.T) {
	r, w := io.Pipe()
	r.CloseWithError(io.ErrClosedPipe)
	c := New(w, 0)
	if n, err := c.Write(settings); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Error(n, err)
	}
}
