package fairqueue

// waiterList is a list of waiters, linked through themselves.
type waiterList struct{ first, last *Waiter }

func (l *waiterList) push(w *Waiter) {
	w.prev = l.last
	if l.last == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
}

func (l *waiterList) remove(w *Waiter) {
	if w.prev == nil {
		l.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next = nil, nil
}

// flowList is a list of flows, linked through themselves.
type flowList struct{ first, last *Flow }

func (l *flowList) push(f *Flow) {
	f.listed = true
	f.prev = l.last
	if l.last == nil {
		l.first = f
	} else {
		l.last.next = f
	}
	l.last = f
}

func (l *flowList) remove(f *Flow) {
	f.listed = false
	if f.prev == nil {
		l.first = f.next
	} else {
		f.prev.next = f.next
	}
	if f.next == nil {
		l.last = f.prev
	} else {
		f.next.prev = f.prev
	}
	f.prev, f.next = nil, nil
}

// flowHeap is a binary heap of flows that know where they are.
type flowHeap []*Flow

// place puts f where it belongs in the heap, or takes it out if in is false.
func (h *flowHeap) place(o order, f *Flow, in bool) {
	i := int(f.at[o]) - 1
	switch {
	case i < 0 && !in:
		return
	case i < 0:
		i = len(*h)
		*h = append(*h, f)
	case !in:
		last := len(*h) - 1
		f.at[o] = 0
		f = (*h)[last]
		(*h)[last] = nil
		*h = (*h)[:last]
		if i == last {
			return
		}
	}
	// There is a hole at i. Move it to where f belongs.
	s := *h
	for i > 0 && o.before(f, s[(i-1)/2]) {
		i = s.move((i-1)/2, i, o)
	}
	for {
		child := 2*i + 1
		if child+1 < len(s) && o.before(s[child+1], s[child]) {
			child++
		}
		if child >= len(s) || !o.before(s[child], f) {
			break
		}
		i = s.move(child, i, o)
	}
	s[i] = f
	f.at[o] = int32(i + 1)
}

// move moves the flow at index from to index to, and returns from.
func (h flowHeap) move(from, to int, o order) int {
	h[to] = h[from]
	h[to].at[o] = int32(to + 1)
	return from
}
