//go:build unix

package prefork

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
)

// answer sends Stats to a worker.
func (m *Master) answer(p *proc, ask int) {
	s := m.stats()
	for i := range s.Seats {
		s.Seats[i].LastOutput = lastBytes(s.Seats[i].LastOutput, 200)
	}
	f := frame{Type: frameFleet, Ask: ask}
	raw, err := json.Marshal(s)
	if err == nil && len(raw) <= maxAnswer {
		f.Fleet = raw
		p.say(m, f)
		return
	}
	var file *os.File
	if err == nil {
		file, err = scratch(raw)
	}
	if err != nil {
		f.Error = err.Error()
		p.say(m, f)
		return
	}
	defer file.Close()
	f.File = true
	p.say(m, f, int(file.Fd()))
}

// scratch returns a file without a name, for another process.
func scratch(content []byte) (*os.File, error) {
	f, err := os.CreateTemp("", "prefork-*")
	if err != nil {
		return nil, err
	}
	err = os.Remove(f.Name())
	if err == nil {
		_, err = f.Write(content)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// readScratch reads what another process has written to such a file, and closes it.
func readScratch(fd int) ([]byte, error) {
	f := os.NewFile(uintptr(fd), "scratch")
	if f == nil {
		return nil, fmt.Errorf("%d is not a descriptor", fd)
	}
	defer f.Close()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}

// stats is Stats, for the goroutine that owns the state.
func (m *Master) stats() Stats {
	f := m.fleet.Snapshot(time.Now())
	s := Stats{
		PID: os.Getpid(), UpFor: time.Since(m.began),
		Generation: f.Generation, Next: f.Next, Restarting: f.Restarting, Stopping: f.Stopping, TakenBack: m.orders.takenBack,
		Workers: f.Want, Serving: f.Serving,
		Requests: f.Requests, Accepted: f.Accepted, Crashes: f.Crashes,
		Seats: make([]SeatStats, 0, len(f.Seats)),
	}
	for _, fs := range f.Seats {
		seat := SeatStats{
			Seat: fs.Seat, Generation: fs.Target, Closing: fs.Closing, Restarts: fs.Restarts, BackoffFor: fs.BackoffFor,
			Queued: m.sockets.queued(fs.Seat), Workers: make([]WorkerStats, 0, len(fs.Workers)),
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
