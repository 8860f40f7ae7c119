package prefork

import (
	"encoding/json"
	"fmt"
)

// workerEnv is how the master tells a process that it is a worker, and which.
const workerEnv = "USHER_PREFORK_WORKER"

// workerSetup is the value of workerEnv.
type workerSetup struct {
	Seat       int            `json:"seat"`
	Master     int            `json:"master"` // its process ID
	Path       string         `json:"path"`   // of the program, as the master knows it
	Generation int            `json:"generation"`
	Control    int            `json:"control"` // descriptors
	Stderr     int            `json:"stderr"`
	Program    int            `json:"program,omitempty"` // of the file that was executed, if it is open
	Sockets    []workerSocket `json:"sockets"`
	MaxProcs   bool           `json:"max_procs,omitempty"` // the master has set GOMAXPROCS
}

type workerSocket struct {
	Name    string `json:"name"`
	FD      int    `json:"fd"`
	Foreign bool   `json:"foreign,omitempty"`
}

func (s workerSetup) validate() error {
	if s.Seat < 0 || s.Generation < 1 || len(s.Sockets) == 0 {
		return fmt.Errorf("prefork: %s has seat %d, generation %d and %d sockets", workerEnv, s.Seat, s.Generation, len(s.Sockets))
	}
	seen := map[int]bool{}
	fds := append([]int{s.Control, s.Stderr}, fdsOf(s.Sockets)...)
	if s.Program != 0 {
		fds = append(fds, s.Program)
	}
	for _, fd := range fds {
		if fd < 3 || seen[fd] {
			return fmt.Errorf("prefork: %s has descriptor %d", workerEnv, fd)
		}
		seen[fd] = true
	}
	return nil
}

func fdsOf(sockets []workerSocket) []int {
	fds := make([]int, len(sockets))
	for i, s := range sockets {
		fds[i] = s.FD
	}
	return fds
}

func parseSetup(value string) (workerSetup, error) {
	var s workerSetup
	if err := json.Unmarshal([]byte(value), &s); err != nil {
		return s, fmt.Errorf("prefork: %s is %.80q: %w", workerEnv, value, err)
	}
	return s, s.validate()
}
