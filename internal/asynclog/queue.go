package asynclog

import (
	"sync"
	"time"
)

// What may wait to be passed on.
const (
	maxEntries = 1024
	maxBytes   = 1 << 20
)

// A queue calls functions in order, in a goroutine that is there while there are
// any.
type queue struct {
	missed   func(n int)   // called in the place of functions for n lines that were dropped
	patience time.Duration // how long add waits for room, if nothing moves

	mu      sync.Mutex
	todo    []entry
	bytes   int
	added   uint64 // entries ever
	passed  uint64
	stuck   bool          // nothing has moved for the time of patience
	moved   chan struct{} // closed when something moves; nil if nobody waits for that
	running bool
	done    chan struct{} // closed when the goroutine that is running has ended
}

// An entry is a function to call, or the number of lines dropped in its place.
type entry struct {
	size    int
	pass    func()
	dropped int
}

// add has f called, which is for so many lines, unless too much waits already.
func (q *queue) add(size, lines int, f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.full(size) && q.patience > 0 && !q.stuck {
		q.awaitMove()
	}
	if q.full(size) {
		last := len(q.todo) - 1
		if q.todo[last].pass != nil {
			q.todo = append(q.todo, entry{})
			q.added++
			last++
		}
		q.todo[last].dropped += lines
		return
	}
	q.todo = append(q.todo, entry{size: size, pass: f})
	q.bytes += size
	q.added++
	if !q.running {
		q.running, q.done = true, make(chan struct{})
		go q.run()
	}
}

func (q *queue) full(size int) bool {
	return len(q.todo) >= maxEntries || q.bytes+size > maxBytes && len(q.todo) > 0
}

// awaitMove waits until something moves, or nothing has for the time of patience.
// The caller holds mu, which is free meanwhile.
func (q *queue) awaitMove() {
	if q.moved == nil {
		q.moved = make(chan struct{})
	}
	moved := q.moved
	q.mu.Unlock()
	defer q.mu.Lock()
	t := time.NewTimer(q.patience)
	defer t.Stop()
	select {
	case <-moved:
	case <-t.C:
		q.mu.Lock()
		q.stuck = q.moved == moved
		q.mu.Unlock()
	}
}

func (q *queue) run() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.todo) > 0 {
		e := q.todo[0]
		q.todo = q.todo[1:]
		q.mu.Unlock()
		if e.pass == nil {
			call(func() { q.missed(e.dropped) })
		} else if !call(e.pass) {
			call(func() { q.missed(1) })
		}
		q.mu.Lock()
		q.bytes -= e.size // not before, so that what hangs counts
		q.passed++
		q.stuck = false
		if q.moved != nil {
			close(q.moved)
			q.moved = nil
		}
	}
	q.todo = nil
	q.running = false
	close(q.done)
}

// call calls f, and reports whether it did not panic: on this goroutine nobody
// else could keep a log that panics from ending the program.
func call(f func()) (fine bool) {
	defer func() {
		if !fine {
			recover()
		}
	}()
	f()
	return true
}

// flush waits until what was added has been passed on, or nothing has for the
// time of patience.
func (q *queue) flush(patience time.Duration) bool {
	q.mu.Lock()
	target := q.added
	q.mu.Unlock()
	for {
		q.mu.Lock()
		running, done, passed := q.running, q.done, q.passed
		q.mu.Unlock()
		if !running || passed >= target {
			return true
		}
		t := time.NewTimer(patience)
		select {
		case <-done:
			t.Stop()
		case <-t.C:
			q.mu.Lock()
			stuck := q.passed == passed
			q.mu.Unlock()
			if stuck {
				return false
			}
		}
	}
}
