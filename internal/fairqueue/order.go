package fairqueue

// An order is what a heap is sorted by, and the index of it in Queue.heaps.
type order int

const (
	byShare       order = iota // fewest slots held for the weight, then joined first
	byShareNewest              // the same, then joined last
	byLength                   // most waiters, then joined last
)

// before reports whether a comes before b.
func (o order) before(a, b *Flow) bool {
	if o == byLength {
		return a.waiting > b.waiting || a.waiting == b.waiting && a.joined > b.joined
	}
	// a.filed/a.weight against b.filed/b.weight, without a remainder.
	x := int64(a.filed) * int64(max(b.Weight, 1))
	y := int64(b.filed) * int64(max(a.Weight, 1))
	return x < y || x == y && (a.joined < b.joined) == (o == byShare)
}

// pick returns the flow whose turn it is by o, which is byShare or
// byShareNewest. There must be one.
func (q *Queue) pick(o order) *Flow {
	for {
		f, others := q.slotless.first, q.heaps[o]
		if o == byShareNewest {
			f = q.slotless.last
		}
		if f == nil || len(others) > 0 && o.before(others[0], f) {
			f = others[0]
		}
		if f.held.Load() == f.filed {
			return f
		}
		q.update(f) // TryAcquire or TryRelease was under way
	}
}

// join puts f at the back of all flows. The caller must call update.
func (q *Queue) join(f *Flow) {
	q.joins++
	f.joined, f.served = q.joins, false
	if f.listed {
		q.slotless.remove(f)
	}
	if f.Held() == 0 {
		q.slotless.push(f)
	}
}

// remove takes w, which waits, from where it does. The caller must call update
// for its flow.
func (q *Queue) remove(w *Waiter) {
	f := w.flow
	w.flow = nil
	if w.resuming {
		q.resumers.remove(w)
		q.resuming--
	} else {
		f.waiters.remove(w)
		q.waiting--
		if f.waiting--; f.waiting == 0 {
			q.backlog--
		}
	}
	if q.waiting+q.resuming == 0 {
		q.word.And(^uint64(waits))
	}
}

// update files f where it belongs now. It must be called after each change of
// its waiters, its last join, or the number of slots it holds.
func (q *Queue) update(f *Flow) {
	f.filed = f.held.Load()
	if f.listed && (f.waiting == 0 || f.filed > 0) {
		q.slotless.remove(f)
	}
	for _, o := range []order{byShare, byShareNewest} {
		q.heaps[o].place(o, f, f.waiting > 0 && !f.listed)
	}
	q.heaps[byLength].place(byLength, f, f.waiting > 1) // one waiter is never too many
}
