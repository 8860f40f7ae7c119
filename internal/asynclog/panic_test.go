package asynclog

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// panicky panics over records that say so, or over all.
type panicky struct {
	slog.Handler
	over string
}

func (h panicky) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, h.over) {
		panic("no such record")
	}
	return h.Handler.Handle(ctx, r)
}

// TestHandlerThatPanics does not end the program, nor the log.
func TestHandlerThatPanics(t *testing.T) {
	for over, want := range map[string]string{"bad": "good dropped good", "": ""} {
		r := newReader()
		h := NewHandler(panicky{slog.NewTextHandler(r, nil), over})
		log := slog.New(h)
		for _, line := range []string{"good", "bad", "good"} {
			log.Info(line)
		}
		if !h.Flush(time.Minute) {
			t.Error("Flush: false")
		}
		var got []string
		for _, line := range r.lines() {
			for _, word := range []string{"good", "dropped=1"} {
				if strings.Contains(line, word) {
					got = append(got, strings.TrimSuffix(word, "=1"))
				}
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("got %q, want %q", s, want)
		}
	}
}
