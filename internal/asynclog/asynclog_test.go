package asynclog

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// reader is a log whose reader can pause.
type reader struct {
	turn chan struct{} // has an element while the reader reads
	mu   sync.Mutex
	got  bytes.Buffer
}

func newReader() *reader {
	r := &reader{turn: make(chan struct{}, 1)}
	r.turn <- struct{}{}
	return r
}

func (r *reader) pause()  { <-r.turn }
func (r *reader) resume() { r.turn <- struct{}{} }

func (r *reader) Write(p []byte) (int, error) {
	<-r.turn
	defer r.resume()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.Write(p)
}

func (r *reader) lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Split(strings.TrimSuffix(r.got.String(), "\n"), "\n")
}

// TestNobodyReads: a log that nobody reads blocks nobody. What is dropped is
// counted, in its place.
func TestNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader()
		r.pause()
		h := NewHandler(slog.NewTextHandler(r, nil))
		log := slog.New(h)
		const lines = maxEntries + 1 + 500 // one is being written
		for i := range lines {
			log.Info("line", "i", i)
			if i == 0 {
				synctest.Wait() // it has been taken
			}
		}
		began := time.Now()
		if h.Flush(time.Second) || time.Since(began) != time.Second {
			t.Errorf("Flush came back after %v though nobody reads", time.Since(began))
		}
		r.resume()
		synctest.Wait()
		log.Info("after")
		if !h.Flush(time.Second) {
			t.Error("Flush fails though somebody reads")
		}
		got := r.lines()
		if len(got) != lines-500+2 {
			t.Fatalf("%d lines", len(got))
		}
		for i, line := range got[:lines-500] {
			if !strings.HasSuffix(line, fmt.Sprintf("msg=line i=%d", i)) {
				t.Fatalf("line %d is %q", i, line)
			}
		}
		if note := got[lines-500]; !strings.Contains(note, "dropped=500") || !strings.Contains(note, "WARN") {
			t.Errorf("in the place of 500 lines: %q", note)
		}
		if last := got[lines-500+1]; !strings.HasSuffix(last, "msg=after") {
			t.Errorf("the last line is %q", last)
		}
	})
}

// TestAttrs: handlers made of one keep its order, and their attributes.
func TestAttrs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader()
		h := NewHandler(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelWarn}))
		if NewHandler(h) != h {
			t.Error("a handler before a handler")
		}
		log := slog.New(h)
		log.Info("not enabled")
		log.Warn("a")
		log.With("x", 1).Warn("b", "y", 2)
		log.WithGroup("g").Warn("c", "y", 3)
		h.Flush(time.Second)
		var got []string
		for _, line := range r.lines() {
			_, rest, _ := strings.Cut(line, "msg=")
			got = append(got, rest)
		}
		if want := "[a b x=1 y=2 c g.y=3]"; fmt.Sprint(got) != want {
			t.Errorf("%v, want %v", got, want)
		}
	})
}

// TestCanceled: the handler behind sees the values of a context, and not its end,
// which may come before the record does.
func TestCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		seen := make(chan context.Context, 1)
		h := NewHandler(handlerFunc(func(ctx context.Context, _ slog.Record) { seen <- ctx }))
		cancel()
		slog.New(h).InfoContext(ctx, "x")
		if got := <-seen; got.Err() != nil || got.Value(key{}) != "value" {
			t.Errorf("error %v, value %v", got.Err(), got.Value(key{}))
		}
	})
}

type handlerFunc func(context.Context, slog.Record)

func (handlerFunc) Enabled(context.Context, slog.Level) bool          { return true }
func (f handlerFunc) Handle(ctx context.Context, r slog.Record) error { f(ctx, r); return nil }
func (f handlerFunc) WithAttrs([]slog.Attr) slog.Handler              { return f }
func (f handlerFunc) WithGroup(string) slog.Handler                   { return f }

// TestWriter: bytes are bounded, too, and each Write is one. Who is stuck is waited
// for once.
func TestWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader()
		r.pause()
		w := NewWriter(r, "test", time.Second)
		began := time.Now()
		line := []byte(strings.Repeat("x", 64<<10-1) + "\n")
		for range 100 {
			if n, err := w.Write(line); n != len(line) || err != nil {
				t.Fatal(n, err)
			}
		}
		line[0] = 'y' // is the caller's again
		if waited := time.Since(began); waited != time.Second {
			t.Errorf("waited %v for who is stuck", waited)
		}
		r.resume()
		if !w.Flush(time.Second) {
			t.Error("Flush fails")
		}
		got := r.lines()
		if len(got) != 17 || got[16] != "test: 84 log lines were dropped: nobody took them in time" {
			t.Errorf("%d lines, the last %.100q", len(got), got[len(got)-1])
		}
		for _, l := range got[:16] {
			if l != strings.Repeat("x", 64<<10-1) {
				t.Errorf("a line is %.100q", l)
			}
		}
	})
}

// TestSlowReader: what comes faster than it is taken is not dropped.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader()
		w := NewWriter(writerFunc(func(p []byte) { time.Sleep(900 * time.Millisecond); r.Write(p) }), "test", time.Second)
		var writing sync.WaitGroup
		for range 4 {
			writing.Go(func() {
				for range maxEntries {
					fmt.Fprintln(w, "line")
				}
			})
		}
		writing.Wait()
		w.Flush(time.Second)
		if got := r.lines(); len(got) != 4*maxEntries {
			t.Errorf("%d of %d lines", len(got), 4*maxEntries)
		}
	})
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// TestLongWrite: one that is longer than what may wait passes alone.
func TestLongWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader()
		w := NewWriter(r, "test", time.Second)
		w.Write(bytes.Repeat([]byte("x"), 2*maxBytes))
		w.Flush(time.Second)
		if got := r.lines(); len(got[0]) != 2*maxBytes {
			t.Errorf("%d bytes", len(got[0]))
		}
	})
}
