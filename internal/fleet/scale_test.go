package fleet

import (
	"slices"
	"testing"
	"time"
)

func (s *sim) scale(n int) {
	if err := s.f.Scale(s.now, n); err != nil {
		s.t.Fatal(err)
	}
	s.take()
}

func TestScaleUp(t *testing.T) {
	s := newSim(t, config(1)).start()
	s.scale(3)
	s.run(10 * time.Second)
	s.want("",
		"2s open 1",
		"2s open 2",
		"2s live [0] [1 2] [1]",
		"2s spawn #2 s1 g1",
		"2s spawn #3 s2 g1",
		"3s ready #2",
		"3s live [0 1] [2] [1 2]",
		"3s ready #3",
		"3s live [0 1 2] [] [1 2 3]",
		"3s all ready",
	)
	s.scale(3)
	s.want("", "12s all ready")
}

func TestScaleDown(t *testing.T) {
	s := newSim(t, config(3)).start()
	s.scale(1)
	if !s.f.Busy() {
		t.Error("not busy")
	}
	s.run(10 * time.Second)
	s.want("",
		"2s live [0 1] [2] [1 2 3]",
		"2s shut 2",
		"2.5s live [0 1] [2] [1 2]",
		"2.5s stop #3 1",
		"3.5s gone #3 asked",
		"3.5s close 2",
		"3.5s live [0] [1] [1 2]",
		"3.5s shut 1",
		"4s live [0] [1] [1]",
		"4s stop #2 1",
		"5s gone #2 asked",
		"5s close 1",
		"5s live [0] [] [1]",
		"5s all ready",
	)
	if s.f.Busy() || len(s.f.Snapshot(s.now).Seats) != 1 {
		t.Error("busy")
	}
}

// TestScaleBack: a seat that is being closed is closed before it is opened
// again, as its connections have been told to go elsewhere.
func TestScaleBack(t *testing.T) {
	s := newSim(t, config(2)).start()
	s.scale(1)
	s.run(time.Second)
	s.scale(2)
	s.run(10 * time.Second)
	s.want("shut stop close open spawn",
		"2s shut 1", "2.5s stop #2 1", "3.5s close 1", "3.5s open 1", "3.5s spawn #3 s1 g1")
}

// TestScaleDownCrash: a seat that loses its worker while it is being closed does
// not get another, and its connections have time all the same.
func TestScaleDownCrash(t *testing.T) {
	s := newSim(t, config(2)).start()
	s.scale(1)
	s.kill9(s.worker(1))
	s.run(10 * time.Second)
	s.want("", "2s live [0] [1] [1 2]", "2s shut 1", "2s gone #2 killed", "2s live [0] [1] [1]", "2.5s close 1", "2.5s live [0] [] [1]", "2.5s all ready")
	if s.gone[0].RespawnIn != -1 {
		t.Error("who respawns it?")
	}
}

// TestScaleDownLast: the only one that serves stays until another one does.
func TestScaleDownLast(t *testing.T) {
	s := newSim(t, config(2)).start()
	s.behave = func(Spawn) behaviour { return behaviour{boot: 5 * time.Second} }
	s.kill9(s.worker(0))
	s.scale(1)
	s.run(time.Minute)
	s.want("", "2s gone #1 killed", "2s live [1] [0] [2]", "2s spawn #3 s0 g1",
		"2s live [0] [0 1] [2]", "2s shut 1", // 0 is all that will remain, and 2 accepts from it
		"7s ready #3",
		"7s live [0] [1] [3]",
		"7s stop #2 1",
		"8s gone #2 asked", "8s close 1", "8s live [0] [] [3]", "8s all ready")
}

// TestScaleDownAtOnce: closing a seat that nobody serves on, without any grace,
// does not leave a step out, nor is anybody started on it meanwhile.
func TestScaleDownAtOnce(t *testing.T) {
	cfg := config(3)
	cfg.HandshakeGrace = 0
	s := newSim(t, cfg).start()
	for range 2 { // so that the second time they are in their backoff
		s.kill9(s.worker(1))
		s.kill9(s.worker(2))
		s.run(1100 * time.Millisecond)
	}
	s.run(time.Second)
	s.kill9(s.worker(1))
	s.kill9(s.worker(2))
	s.lines = nil
	s.scale(1)
	s.want("shut close spawn", "5.2s shut 2", "5.2s close 2", "5.2s shut 1", "5.2s close 1")

	cfg = config(3)
	cfg.HandshakeGrace = cfg.BackoffBase
	s = newSim(t, cfg).start()
	s.kill9(s.worker(1))
	s.run(time.Second)
	s.kill9(s.worker(1))
	s.scale(1)
	s.kill9(s.worker(2))
	s.lines = nil
	s.run(time.Minute)
	s.want("shut close spawn", "4s close 2", "4s shut 1", "5s close 1")
}

// TestScaleDuringRestart: it waits. A restart does not wait for a seat to close.
func TestScaleDuringRestart(t *testing.T) {
	s := newSim(t, config(2)).start()
	s.restart(1)
	s.run(time.Second)
	s.scale(3)
	s.run(time.Minute)
	s.want("spawn open done all",
		"2s spawn #3 s0 g2", "8s spawn #4 s1 g2", "14s open 2", "14s spawn #5 s2 g2", "14s done [1] g2 <nil>", "15s all ready")

	s.behave = func(Spawn) behaviour { return behaviour{stop: 15 * time.Second} }
	s.worker(2).stop = 15 * time.Second
	s.scale(1)
	s.restart(2)
	s.run(time.Minute)
	s.want("shut close spawn stop open done all",
		"1m3s shut 2",
		"1m3s spawn #6 s0 g3",
		"1m3.5s stop #5 1",
		"1m9s stop #3 1",
		"1m9s spawn #7 s1 g3",
		"1m10s stop #4 1",
		"1m18.5s close 2",
		"1m18.5s shut 1", // now that the restart does not roll any more
		"1m18.5s done [2] g3 <nil>",
		"1m19s stop #7 1",
		"1m34s close 1",
		"1m34s all ready",
	)
	if !slices.Equal(s.generations(), []int{3}) {
		t.Error(s.generations())
	}
}

// TestOrphans: as long as nobody serves on a seat the others do.
func TestOrphans(t *testing.T) {
	s := newSim(t, config(3)).start()
	s.behave = func(Spawn) behaviour { return behaviour{boot: 5 * time.Second} }
	s.kill9(s.worker(1))
	s.kill9(s.worker(2))
	s.kill9(s.worker(0))
	s.run(10 * time.Second)
	s.want("live",
		"2s live [0 2] [1] [1 3]",
		"2s live [0] [1 2] [1]",
		"2s live [0 1 2] [0 1 2] []",
		"7s live [1] [0 2] [4]",
		"7s live [1 2] [0] [4 5]",
		"7s live [0 1 2] [] [6 4 5]",
	)
}
