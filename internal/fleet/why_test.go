package fleet

import (
	"testing"
	"time"
)

// TestWhy: a worker is told why it is to stop.
func TestWhy(t *testing.T) {
	for _, tt := range []struct {
		why string
		do  func(s *sim)
	}{
		{"restart", func(s *sim) { s.restart(1) }},
		{"scale", func(s *sim) { s.scale(1) }},
		{"recycle", func(s *sim) { s.event(func() { s.f.Recycle(s.now, 1) }) }},
		{"SIGTERM", func(s *sim) {
			s.worker(1).leaving = true
			s.event(func() { s.f.Leaving(s.now, s.worker(1).ID, "SIGTERM") })
		}},
		{"test", func(s *sim) { s.stop(LevelStop) }},
	} {
		t.Run(tt.why, func(t *testing.T) {
			s := newSim(t, config(2)).start()
			id := s.worker(1).ID
			tt.do(s)
			s.run(time.Minute)
			if got := s.whys[id]; got != tt.why {
				t.Errorf("the worker of seat 1 was told %q, want %q", got, tt.why)
			}
		})
	}
}
