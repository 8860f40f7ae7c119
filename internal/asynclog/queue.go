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
	missed func(n int) // called in the place of n functions that were dropped

	mu      sync.Mutex
	todo    []entry
	bytes   int
	added   uint64 // entries ever
	passed  uint64
	running bool
	done    chan struct{} // closed when the goroutine that is running has ended
}

// An entry is a function to call, or the number of those dropped in its place.
type entry struct {
	size    int
	pass    func()
	dropped int
}

// add has f called, unless too much waits already.
func (q *queue) add(size int, f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.todo) >= maxEntries || q.bytes+size > maxBytes && q.bytes > 0 {
		last := len(q.todo) - 1
		if q.todo[last].pass != nil {
			q.todo = append(q.todo, entry{})
			q.added++
			last++
		}
		q.todo[last].dropped++
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

func (q *queue) run() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.todo) > 0 {
		e := q.todo[0]
		q.todo = q.todo[1:]
		q.mu.Unlock()
		if e.pass != nil {
			e.pass()
		} else {
			q.missed(e.dropped)
		}
		q.mu.Lock()
		q.bytes -= e.size // not before, so that what hangs counts
		q.passed++
	}
	q.todo = nil
	q.running = false
	close(q.done)
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
