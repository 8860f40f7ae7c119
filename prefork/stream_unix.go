//go:build unix

package prefork

import (
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/internal/asynclog"
	"golang.org/x/sys/unix"
)

// A stream is the pipe that a worker has for standard error. The processes that
// the worker has started have it, too, and may outlive it: it is read until all
// of them are gone, or their next write would end them (SIGPIPE).
type stream struct {
	file    *os.File
	kept    *output
	lines   liner
	ended   chan struct{} // closed when nobody has the other end any more
	reading sync.WaitGroup
}

// outputs is where the streams of all workers go.
type outputs struct {
	to   *asynclog.Writer // standard error
	gone map[*stream]bool // of workers that are gone
}

func newStream(file *os.File) *stream {
	return &stream{file: file, kept: &output{}, ended: make(chan struct{})}
}

// start reads s until its end or a pause, and then calls ended if it was the end.
func (s *stream) start(to io.Writer, ended func()) {
	if s.hasEnded() {
		return
	}
	s.reading.Go(func() {
		if s.copy(to) {
			close(s.ended)
			ended()
		}
	})
}

func (s *stream) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// pause ends the reading for a while. The caller waits for s.reading.
func (s *stream) pause() { s.file.SetReadDeadline(time.Now()) }

// copy writes whole lines of s to a writer that never blocks, and reports whether
// that was all.
func (s *stream) copy(to io.Writer) bool {
	buf := make([]byte, 64<<10) // what a pipe holds
	for {
		n, err := s.file.Read(buf)
		if n > 0 {
			s.kept.Write(buf[:n])
			if lines := s.lines.feed(buf[:n]); len(lines) > 0 {
				to.Write(lines)
			}
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false
		case err != nil:
			if line := s.lines.end(); len(line) > 0 {
				to.Write(line)
			}
			return true
		}
	}
}

// readStream reads what a worker and its children write.
func (m *Master) readStream(s *stream) {
	s.start(m.output.to, func() {
		m.post(func() {
			if m.output.gone[s] {
				delete(m.output.gone, s)
				s.file.Close()
			}
		})
	})
}

// leaveStream is called when the worker is gone.
func (m *Master) leaveStream(s *stream) {
	if s.hasEnded() {
		s.file.Close()
		return
	}
	m.output.gone[s] = true
}

// streams returns those of all workers, also of those that are gone.
func (m *Master) streams() []*stream {
	all := slices.Collect(maps.Keys(m.output.gone))
	for _, p := range m.procs {
		if p.started != nil {
			all = append(all, p.stream)
		}
	}
	return all
}

// closeStreams ends the reading.
func (m *Master) closeStreams() {
	for _, s := range m.streams() {
		s.file.Close()
		s.reading.Wait()
	}
}

// state is for the next master, in a pause.
func (s *stream) state() (streamState, error) {
	fd, err := rawFD(s.file)
	return streamState{FD: fd, Rest: s.lines.rest}, err
}

// open goes on with what the master before has left.
func (s streamState) open() (*stream, error) {
	if err := unix.SetNonblock(s.FD, true); err != nil {
		return nil, err
	}
	opened := newStream(os.NewFile(uintptr(s.FD), "stderr"))
	opened.lines.rest = s.Rest
	return opened, nil
}
