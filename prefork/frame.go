package prefork

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/seed-235859eb/usher/internal/fleet"
)

// A frame is what master and worker send each other, as a line of JSON: the
// two may be of different versions of a program, and of usher.
type frame struct {
	Type string `json:"t"`

	Level fleet.Level `json:"level,omitempty"` // stop
	Final bool        `json:"final,omitempty"` // stop

	Reason string `json:"reason,omitempty"` // stop, leaving

	Seats []int       `json:"seats,omitempty"` // orphans: all that the worker shall accept from
	Fresh []string    `json:"fresh,omitempty"` // orphans: what the descriptors that come along are, "seat endpoint"
	Ready bool        `json:"ready,omitempty"` // beat: it serves
	Beat  *fleet.Beat `json:"beat,omitempty"`

	Endpoint string `json:"endpoint,omitempty"` // shut

	Ask   int             `json:"ask,omitempty"` // number of a question and its answer
	Fleet json.RawMessage `json:"fleet,omitempty"`
	File  bool            `json:"file,omitempty"`  // instead of Fleet: it is in the file that comes along
	Error string          `json:"error,omitempty"` // instead of Fleet
}

// Types of frames. Others are ignored: they come from another version.
const (
	frameStop    = "stop"    // to the worker: stop, or faster
	frameOrphans = "orphans" // to the worker: accept from these seats, too
	frameFleet   = "fleet"   // the worker asks for Stats, the master answers
	frameShut    = "shut"    // the worker asks the master to stop handshakes on an endpoint, the master answers
	frameBeat    = "beat"    // from the worker: how it is doing
	frameLeaving = "leaving" // from the worker: somebody else told it to stop
)

// maxAnswer bounds what the master sends at once, more goes by a file: what does
// not fit into the socket's buffer would break the link.
const maxAnswer = 64 << 10

// descriptors returns how many come with f.
func (f frame) descriptors() int {
	if f.File {
		return len(f.Fresh) + 1
	}
	return len(f.Fresh)
}

// maxFrame bounds what one side keeps for the other's unfinished line.
const maxFrame = 1 << 20

// A splitter makes frames of a stream of bytes.
type splitter struct{ rest []byte }

// feed adds p and returns the frames that are complete.
func (s *splitter) feed(p []byte) ([]frame, error) {
	var frames []frame
	s.rest = append(s.rest, p...)
	for {
		end := slices.Index(s.rest, '\n')
		if end < 0 {
			if len(s.rest) > maxFrame {
				return frames, fmt.Errorf("prefork: a frame of more than %d bytes", maxFrame)
			}
			return frames, nil
		}
		var f frame
		if err := json.Unmarshal(s.rest[:end], &f); err != nil {
			return frames, fmt.Errorf("prefork: bad frame %.80q: %w", s.rest[:end], err)
		}
		frames = append(frames, f)
		s.rest = append(s.rest[:0], s.rest[end+1:]...)
	}
}

// freshOf parses an element of frame.Fresh.
func freshOf(s string) (seat int, endpoint string, err error) {
	if n, err := fmt.Sscanf(s, "%d", &seat); n != 1 || err != nil || seat < 0 {
		return 0, "", fmt.Errorf("prefork: bad orphan %.80q", s)
	}
	for i := range s {
		if s[i] == ' ' {
			return seat, s[i+1:], nil
		}
	}
	return 0, "", fmt.Errorf("prefork: bad orphan %.80q", s)
}
