package usher

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/limit"
)

// TestHooksOfAStopThatIsTooLate: hooks have time even when the deadline of
// Shutdown's context had passed before the call, or its context had ended.
func TestHooksOfAStopThatIsTooLate(t *testing.T) {
	for _, ended := range []time.Duration{-time.Hour, 0, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			v := startVirtual(t, Options{}, ok)
			var left time.Duration
			v.OnShutdown("flush", func(ctx context.Context) error {
				at, _ := ctx.Deadline()
				left = time.Until(at)
				return ctx.Err()
			})
			ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(ended))
			cancel()
			if err := v.Shutdown(ctx); err == nil {
				t.Error("Shutdown: nil")
			}
			<-v.served
			if left < defaultGracePeriod/10 {
				t.Errorf("a deadline in %v: the hook had %v", ended, left)
			}
		})
	}
}

// TestHookLearnsWhy its time is over: Close is not a third signal.
func TestHookLearnsWhy(t *testing.T) {
	for want, end := range map[error]func(*Server){
		http.ErrServerClosed: func(s *Server) { s.Close() },
		errEndNow:            func(s *Server) { s.endNow("test") },
	} {
		ts := startServer(t, h1, quickly(), ok)
		ts.OnShutdown("waits", func(ctx context.Context) error {
			go end(ts.Server)
			<-ctx.Done()
			return context.Cause(ctx)
		})
		if err := ts.Shutdown(t.Context()); !errors.Is(err, want) {
			t.Errorf("Shutdown: %v, want %v", err, want)
		}
		<-ts.served
	}
}

// TestEachKindOfTurningAwayIsSaid, but not that clients leave, or that a stop is
// over.
func TestEachKindOfTurningAwayIsSaid(t *testing.T) {
	for v, want := range map[limit.Verdict]bool{
		limit.Full: true, limit.TooLate: true, limit.Expired: true, limit.Left: false, limit.Stopped: false,
	} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			rec := &recorder{}
			l := newLimiter(FairnessOptions{Slots: 1}, false, rec.logger())
			l.turnAway(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil), v)
			l.full.end()
			if said := rec.contains("turned away"); said != want {
				t.Errorf("said: %v, want %v", said, want)
			}
		})
	}
}

// TestMultipartOfAStream: net/http removes the files of a form that came with a
// request for an event stream.
func TestMultipartOfAStream(t *testing.T) {
	ts := startServer(t, h1, quickly(), func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseMultipartForm(1); err != nil {
			t.Error(err)
		}
	})
	ts.chain()
	r := httptest.NewRequest("GET", "/", strings.NewReader("--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--x--\r\n"))
	r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
	r.Header.Set("Accept", "text/event-stream")
	ts.http.Handler.ServeHTTP(httptest.NewRecorder(), r)
	if r.MultipartForm == nil {
		t.Error("net/http does not see the form")
	}
}

// TestWhatIsAnEventStream: StreamGrace ends nothing else.
func TestWhatIsAnEventStream(t *testing.T) {
	for _, tt := range []struct {
		method, accept string
		want           bool
	}{
		{"GET", "text/event-stream", true},
		{"GET", "", false},
		{"GET", "text/html, text/event-stream", false},
		{"POST", "text/event-stream", false},
		{"POST", "application/json, text/event-stream", false},
	} {
		r := httptest.NewRequest(tt.method, "/", nil)
		if tt.accept != "" {
			r.Header.Set("Accept", tt.accept)
		}
		if got := isEventStream(r); got != tt.want {
			t.Errorf("%s, Accept %q: %v, want %v", tt.method, tt.accept, got, tt.want)
		}
	}
}
