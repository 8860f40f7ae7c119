//go:build unix

package prefork

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
)

// answer is Stats in a frame.
func (m *Master) answer(ask int) frame {
	s := m.stats()
	for i := range s.Seats {
		s.Seats[i].LastOutput = lastBytes(s.Seats[i].LastOutput, 200)
	}
	f := frame{Type: frameFleet, Ask: ask}
	raw, err := json.Marshal(s)
	switch {
	case err != nil:
		f.Error = err.Error()
	case len(raw) > maxAnswer:
		f.Error = fmt.Sprintf("%d workers are too many for the control socket", s.Workers)
	default:
		f.Fleet = raw
	}
	return f
}

// stats is Stats, for the goroutine that owns the state.
func (m *Master) stats() Stats {
	f := m.fleet.Snapshot(time.Now())
	s := Stats{
		PID: os.Getpid(), UpFor: time.Since(m.began),
		Generation: f.Generation, Next: f.Next, Restarting: f.Restarting, Stopping: f.Stopping, TakenBack: m.takenBack,
		Workers: f.Want, Serving: f.Serving,
		Requests: f.Requests, Accepted: f.Accepted, Crashes: f.Crashes,
		Seats: make([]SeatStats, 0, len(f.Seats)),
	}
	for _, fs := range f.Seats {
		seat := SeatStats{
			Seat: fs.Seat, Generation: fs.Target, Closing: fs.Closing, Restarts: fs.Restarts, BackoffFor: fs.BackoffFor,
			Queued: m.queued(fs.Seat), Workers: make([]WorkerStats, 0, len(fs.Workers)),
		}
		if e := fs.LastExit; e != nil {
			seat.LastExit, seat.LastClass, seat.LastOutput = e.String(), Class(e.Class), lastBytes(e.Exit.Output, 1<<10)
		}
		for _, w := range fs.Workers {
			seat.Workers = append(seat.Workers, statsOf(w))
		}
		s.Seats = append(s.Seats, seat)
	}
	return s
}

func (m *Master) workerStats(id fleet.ID) (WorkerStats, bool) {
	for _, seat := range m.fleet.Snapshot(time.Now()).Seats {
		for _, w := range seat.Workers {
			if w.ID == id {
				return statsOf(w), true
			}
		}
	}
	return WorkerStats{}, false
}
