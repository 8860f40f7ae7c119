// Package asynclog has a [slog.Handler] that never blocks, and an [io.Writer] that
// does not block for long. What they get is passed on in order by a goroutine. If
// whoever is behind it does not take it, a limited number of lines waits, and more
// are dropped and counted, as is a line over which whoever is behind it panics.
//
// A log that nobody reads (a full pipe) blocks its writer for ever. A server or a
// supervisor that logs must not stop for that.
package asynclog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// A Handler passes records on to another handler without waiting for it.
//
// There is a goroutine only while there are records to pass on, so a Handler
// needs no Close. A program should call [Handler.Flush] before it ends. All
// methods may be called from many goroutines at once.
type Handler struct {
	next  slog.Handler
	queue *queue
}

// NewHandler returns a Handler before next. If next is a Handler itself it
// returns next.
func NewHandler(next slog.Handler) *Handler {
	if h, ok := next.(*Handler); ok {
		return h
	}
	return &Handler{next, &queue{missed: func(n int) {
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines were dropped: nobody took them in time", 0)
		r.AddAttrs(slog.Int("dropped", n))
		next.Handle(context.Background(), r)
	}}}
}

// Enabled implements [slog.Handler].
func (h *Handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// Handle implements [slog.Handler]. It returns nil: what becomes of the record
// is not known yet.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	ctx, r = context.WithoutCancel(ctx), r.Clone()
	h.queue.add(0, 1, func() { h.next.Handle(ctx, r) })
	return nil
}

// WithAttrs implements [slog.Handler]. The new handler passes its records on in
// order with those of h.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.next.WithAttrs(attrs), h.queue}
}

// WithGroup implements [slog.Handler], like WithAttrs.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.next.WithGroup(name), h.queue}
}

// Flush waits until all records that came before the call have been passed on.
// It gives up, and returns false, when none has been taken for the time of
// patience.
func (h *Handler) Flush(patience time.Duration) bool { return h.queue.flush(patience) }

// A Writer passes what is written on to another writer, what was one Write as
// one. It waits for one that is slow, and not for one that is stuck. It is
// otherwise like [Handler].
type Writer struct {
	next  io.Writer
	queue *queue
}

// NewWriter returns a Writer before next, which is stuck when it has taken nothing
// for the time of patience, until it takes something again. After lines have been
// dropped, next gets a line that begins with name and says how many.
func NewWriter(next io.Writer, name string, patience time.Duration) *Writer {
	return &Writer{next, &queue{patience: patience, missed: func(n int) {
		fmt.Fprintf(next, "%s: %d log lines were dropped: nobody took them in time\n", name, n)
	}}}
}

// Write implements [io.Writer]. It returns no error, and does not keep p. When so
// much waits already that p would have to be dropped, it waits for the time of
// patience, at most and once until next takes something again.
func (w *Writer) Write(p []byte) (int, error) {
	own := bytes.Clone(p)
	w.queue.add(len(own), bytes.Count(own, []byte{'\n'}), func() { w.next.Write(own) })
	return len(p), nil
}

// Flush is like [Handler.Flush].
func (w *Writer) Flush(patience time.Duration) bool { return w.queue.flush(patience) }
