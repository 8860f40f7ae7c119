// Package fairqueue decides which request runs next. It has data structures only: no
// goroutine, no clock, no blocking. The caller wakes the requests that it is told to
// wake.
//
// A [Queue] has a number of slots. A request that runs holds one. A [Flow] is what
// slots are shared between, such as a connection. A [Waiter] is a waiting request of a
// flow. A slot that becomes free while a request waits is handed to
//
//  1. the request that came first with [Queue.Resume], or else
//  2. the oldest waiter of the flow that holds the fewest slots for its weight,
//     and among equals of the flow that joined earliest. A flow joins at the
//     back when its first waiter comes, and again when a request of it
//     finishes. Being handed a slot does not move it. Or else, if the caller
//     calls that waiter late,
//  3. the newest waiter of the flow that holds the fewest slots for its weight,
//     and among equals of the flow that joined last.
//
// With one request at a time for each flow that is first come, first served.
// With more it keeps a flow of many requests from taking the turns of others:
// breaking ties by the oldest waiter, or moving a flow when it is handed a
// slot, each lets such a flow hold more than its share.
//
// A request that waits for its client yields its slot meanwhile. With that too
// a flow joins anew, if it has been handed a slot since it last did. If it never
// did, a flow of uploads that yield at once could begin them all before anybody
// else had a turn. If it always did, one long upload that yields often would
// keep the other requests of its flow from ever having one.
//
// # Locking
//
// TryAcquire, TryRelease and CanKeep need no lock and may be called at any
// time. Every other method of Queue, and Flow.Waiting, needs the lock that the
// caller keeps for the Queue, always the same one.
//
// No slot stays free while anybody waits, whatever runs at once. Everything
// that decides is in one atomic word: the slots, the running requests, and the
// waits bit, which is set if and only if somebody waits. The bit changes under
// the lock only. It is set by a compare-and-swap from a word in which no slot
// is free, so a TryRelease comes either before it, and the swap finds the free
// slot and takes that instead, or after it, and finds the bit and fails. While
// the bit is set TryAcquire and TryRelease change nothing, so the word belongs
// to the lock, and each method leaves it with no slot free or the bit cleared:
// Release and Yield hand their slot on, SetSlots hands out what it adds, and to
// cancel or to evict a waiter frees no slot.
//
// A flow's count of held slots is a word of its own, and no lock stops its
// changes by TryAcquire and TryRelease. They are ordered so that it may be too
// low for a moment, while either of them is under way, and never too high. A
// flow filed under a count too low comes up too early, and is then filed anew.
package fairqueue

import "sync/atomic"

// A Queue shares slots among flows. Its zero value has no slots: set the fields
// if need be, then call SetSlots. After that it must not be copied, nor the
// fields be changed.
//
// An operation costs a constant, plus the logarithms of two numbers of flows:
// of those with waiters and also a request that runs or has yielded, and of
// those with two waiters or more. With one request at a time for each flow both
// are zero. Nothing is allocated, but for the growth of two slices to the
// largest such numbers, and by SetSlots.
type Queue struct {
	word atomic.Uint64 // see the constants

	// MaxInline is the number of requests that a flow may run in a row on one
	// slot while anybody waits. Zero means 1. See CanKeep.
	MaxInline int

	// MaxQueue is the number of waiters, without resuming ones, above which
	// Enqueue turns one away. Zero means no bound.
	MaxQueue int

	// Late, if not nil, is asked about the waiter whose turn it is: whether a
	// slot would be lost on it, because its client may well leave before it is
	// answered. Then the newest waiter has the slot. It must not call the Queue.
	Late func(*Waiter) bool

	_ [32]byte // keeps what follows out of the cache line of the fast path

	joins    uint64      // number of joins so far
	waiting  int         // waiters, without resuming ones
	backlog  int         // flows with waiters
	resuming int         // length of resumers
	resumers waiterList  // in order of coming
	slotless flowList    // flows with waiters that held no slot since they joined, in that order
	heaps    [3]flowHeap // by order
}

// The parts of Queue.word, from the lowest bit: the number of running requests,
// the waits bit, and the number of slots.
const (
	maxSlots   = 1<<31 - 1
	waits      = 1 << 31
	slotsShift = 32
)

func running(word uint64) uint64 { return word & maxSlots }
func slots(word uint64) uint64   { return word >> slotsShift }

// A Flow is what slots are shared among. Its zero value is ready for use. It
// belongs to one Queue, and may be dropped when it holds no slot and no request
// of it waits.
type Flow struct {
	// Weight is the number of slots the flow is due for each one of a flow of
	// weight 1. Less than 1 means 1. It must not change while the flow has
	// waiters.
	Weight int32

	held    atomic.Int32
	filed   int32    // what held was when update filed the flow
	waiting int32    // length of waiters
	at      [3]int32 // 1 + the index in each of Queue.heaps, or 0
	joined  uint64   // number of the last join
	served  bool     // a waiter has been handed a slot since
	listed  bool     // in Queue.slotless
	waiters waiterList
	prev    *Flow // in Queue.slotless
	next    *Flow
}

// Held returns the number of slots that f holds. It needs no lock.
func (f *Flow) Held() int { return int(f.held.Load()) }

// Waiting returns the number of waiters of f, without resuming ones.
func (f *Flow) Waiting() int { return int(f.waiting) }

// A Waiter is the place of one request in a Queue. Its zero value is ready for
// use, and it may be used again as soon as it does not wait.
type Waiter struct {
	// Value is the caller's, to know whose Waiter it is given back.
	Value any

	flow     *Flow   // nil unless it waits
	resuming bool    // waits in Queue.resumers
	prev     *Waiter // in its list
	next     *Waiter
}

// TryAcquire takes a slot for f if one is free and nobody waits, and reports
// whether it did. It needs no lock and takes two atomic operations.
func (q *Queue) TryAcquire(f *Flow) bool {
	for {
		word := q.word.Load()
		if word&waits != 0 || running(word) >= slots(word) {
			return false
		}
		if q.word.CompareAndSwap(word, word+1) {
			f.held.Add(1) // after, see the package comment
			return true
		}
	}
}

// TryRelease gives back a slot of f if that concerns nobody else: if nobody
// waits and no more requests run than there are slots. Otherwise it changes
// nothing and returns false, and the caller must use [Queue.Release], or
// [Queue.Yield]. It needs no lock and takes two atomic operations.
func (q *Queue) TryRelease(f *Flow) bool {
	word := q.word.Load()
	if word&waits != 0 || running(word) > slots(word) {
		return false
	}
	f.drop() // before, see the package comment
	for !q.word.CompareAndSwap(word, word-1) {
		if word = q.word.Load(); word&waits != 0 || running(word) > slots(word) {
			f.held.Add(1)
			return false
		}
	}
	return true
}

// CanKeep reports whether the flow that has run turn requests in a row on one
// slot, the last one included, may keep that slot for its next request: if
// nobody waits, of the same flow neither, or turn is below MaxInline. It needs
// no lock.
//
// Ask when a request has finished, and again when the next one takes over a
// slot that was kept: somebody may have come meanwhile. The caller counts. A
// slot from TryAcquire, Enqueue or Resume starts at 1, and only taking over a
// kept slot adds 1, whether anybody waits or not. As turn is never below 1, a
// MaxInline of 1 means that no slot is kept from anybody who waits.
func (q *Queue) CanKeep(turn int) bool {
	return turn < q.MaxInline || q.word.Load()&waits == 0
}

// Enqueue asks for a slot for a request of f. It is granted at once if a slot
// is free. Otherwise w waits at the back of its flow, until Release, Yield or
// SetSlots returns it, Enqueue returns it as the victim, or Cancel ends it.
//
// If MaxQueue are waiting already then one is turned away, and returned as the
// victim. That is the newest waiter of the flow with the most waiters, and
// among equals of the one that joined last, if they are more than f would have
// with w. Otherwise it is w itself, which then does not wait.
func (q *Queue) Enqueue(f *Flow, w *Waiter) (granted bool, victim *Waiter) {
	if q.enter(f, w) {
		return true, nil
	}
	if q.MaxQueue > 0 && q.waiting >= q.MaxQueue {
		long := q.heaps[byLength]
		if len(long) == 0 || long[0].waiting <= f.waiting+1 {
			return false, w
		}
		victim = long[0].waiters.last
		q.remove(victim)
		q.update(long[0])
	}
	w.flow, w.resuming = f, false
	f.waiters.push(w)
	q.waiting++
	if f.waiting++; f.waiting == 1 {
		q.backlog++
		q.join(f)
	}
	q.update(f)
	return false, victim
}

// Resume asks for a slot for a request of f that has yielded. It comes before
// all that have not begun, no bound applies to it, and until it is granted it
// does not count in its flow. Otherwise it is like [Queue.Enqueue].
func (q *Queue) Resume(f *Flow, w *Waiter) (granted bool) {
	if q.enter(f, w) {
		return true
	}
	w.flow, w.resuming = f, true
	q.resumers.push(w)
	q.resuming++
	return false
}

// Release gives back a slot of f, as its request has finished. The slot goes to
// the waiter that it returns, if any: that request holds it from now on, and the
// caller has to tell it.
func (q *Queue) Release(f *Flow) *Waiter { return q.giveBack(f, true) }

// Yield gives back a slot of f, as its request waits for its client and will
// come again with Resume. It returns what [Queue.Release] does.
func (q *Queue) Yield(f *Flow) *Waiter { return q.giveBack(f, f.served) }

func (q *Queue) giveBack(f *Flow, join bool) *Waiter {
	f.drop()
	if f.waiting > 0 {
		if join {
			q.join(f)
		}
		q.update(f)
	}
	if word := q.word.Load(); word&waits != 0 && running(word) <= slots(word) {
		return q.grant()
	}
	q.word.Add(^uint64(0))
	return nil
}

// Cancel ends the waiting of w, and reports whether w waited. If it did, w will
// not be returned by any method. If it did not, it has been returned already:
// granted a slot, which is then the caller's to release, or as a victim.
func (q *Queue) Cancel(w *Waiter) bool {
	f := w.flow
	if f == nil {
		return false
	}
	q.remove(w)
	q.update(f)
	return true
}

// Ahead returns how many waiters have their turn before one more of f would, at
// least, if nobody else comes.
func (q *Queue) Ahead(f *Flow) int {
	return min(q.waiting, (f.Waiting()/int(max(f.Weight, 1))+1)*q.backlog)
}

// SetSlots sets the number of slots, from 0 to 1<<31-1. It returns the waiters
// that are handed a slot by that, in order. If more requests run than there are
// slots from now on, then slots vanish as they are released.
func (q *Queue) SetSlots(n int) (granted []*Waiter) {
	if n < 0 || n > maxSlots {
		panic("fairqueue: number of slots out of range")
	}
	word := q.word.Load()
	for !q.word.CompareAndSwap(word, word&(1<<slotsShift-1)|uint64(n)<<slotsShift) {
		word = q.word.Load()
	}
	for {
		word = q.word.Load()
		if word&waits == 0 || running(word) >= slots(word) {
			return granted
		}
		q.word.Add(1)
		granted = append(granted, q.grant())
	}
}

// A Snapshot is the state of a Queue at one moment.
type Snapshot struct {
	Slots    int // as set
	Running  int // requests that hold a slot; more than Slots after a reduction
	Waiting  int // waiters, without resuming ones
	Resuming int // waiters that have begun already
	Flows    int // flows with waiters, without resuming ones
}

// Snapshot returns the state of q.
func (q *Queue) Snapshot() Snapshot {
	word := q.word.Load()
	return Snapshot{int(slots(word)), int(running(word)), q.waiting, q.resuming, q.backlog}
}

// drop takes one from the slots that f holds.
func (f *Flow) drop() {
	if f.held.Add(-1) < 0 {
		f.held.Add(1)
		panic("fairqueue: released more slots than held")
	}
}

// enter takes a slot for f if one is free and nobody waits. Otherwise it sets
// the waits bit, and the caller must see to it that somebody waits.
func (q *Queue) enter(f *Flow, w *Waiter) bool {
	if w.flow != nil {
		panic("fairqueue: waiter waits already")
	}
	for {
		word := q.word.Load()
		if running(word) >= slots(word) { // as is always so while somebody waits
			if q.word.CompareAndSwap(word, word|waits) {
				return false
			}
		} else if q.word.CompareAndSwap(word, word+1) {
			f.held.Add(1)
			return true
		}
	}
}

// grant hands a slot, which counts as running already, to the next waiter.
func (q *Queue) grant() *Waiter {
	w := q.resumers.first
	if w == nil {
		if w = q.pick(byShare).waiters.first; q.Late != nil && q.Late(w) {
			w = q.pick(byShareNewest).waiters.last
		}
	}
	f := w.flow
	f.held.Add(1)
	f.served = f.served || !w.resuming
	q.remove(w)
	q.update(f)
	return w
}
