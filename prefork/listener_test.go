//go:build unix

package prefork

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/reuseport"
	"github.com/seed-235859eb/usher/internal/supervised"
)

// sockets returns two listeners on one socket, as two workers of a seat have.
func sockets(t *testing.T, group *reuseport.Group, w *Worker) *listener {
	t.Helper()
	inner, err := reuseport.Listener(group.FD(0))
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(w, "test", 0, &socket{Listener: inner})
	t.Cleanup(func() { l.Close() })
	return l
}

func openGroup1(t *testing.T) *reuseport.Group {
	t.Helper()
	g, err := reuseport.Open("tcp", "127.0.0.1:0", 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// fill dials n times and returns when all are in the accept queue, less one
// that each listener that accepts has in hand.
func fill(t *testing.T, addr net.Addr, n int) {
	t.Helper()
	for range n {
		c, err := net.Dial(addr.Network(), addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

func testWorker(t *testing.T) *Worker {
	return newWorker(t.Context(), Options{Workers: 1}.withDefaults(), 0, 1)
}

func acceptAll(l net.Listener) (n int, err error) {
	for {
		c, err := l.Accept()
		if err != nil {
			return n, err
		}
		c.Close()
		n++
	}
}

// TestFinishServesTheQueue: when the whole fleet stops, what has been
// established is handed over before the sockets close.
func TestFinishServesTheQueue(t *testing.T) {
	for range 20 {
		g := openGroup1(t)
		w := testWorker(t)
		w.final.Store(true)
		l := sockets(t, g, w)
		fill(t, g.Addr(), 1)
		c, err := l.Accept() // the goroutine of the socket is at work from here on
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		fill(t, g.Addr(), 20)
		l.Finish()
		n, err := acceptAll(l)
		if n != 20 || !errors.Is(err, net.ErrClosed) {
			t.Fatalf("%d connections and %v, want 20 and net.ErrClosed", n, err)
		}
		g.Close()
		if c, err := net.Dial("tcp", g.Addr().String()); err == nil {
			c.Close()
			t.Fatal("the socket is still open")
		}
	}
}

// TestFinishLeavesTheQueueToOthers when they go on: all that an old worker has
// not accepted is its successor's.
func TestFinishLeavesTheQueueToOthers(t *testing.T) {
	g := openGroup1(t)
	old, next := sockets(t, g, testWorker(t)), sockets(t, g, testWorker(t))
	fill(t, g.Addr(), 1)
	c, err := old.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	fill(t, g.Addr(), 20)
	if _, err := old.Shut(); !errors.Is(err, supervised.ErrShared) {
		t.Errorf("Shut = %v, want ErrShared", err)
	}
	old.Finish()
	n, _ := acceptAll(old)
	if n > 1 {
		t.Errorf("the old worker accepted %d after it was told to finish", n)
	}
	for range 20 - n {
		c, err := next.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	fill(t, g.Addr(), 1) // nobody has shut the gate
	if c, err := next.Accept(); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

// TestAdoptAndRelease: a sibling accepts from a seat without a worker, and gives
// it back empty.
func TestAdoptAndRelease(t *testing.T) {
	own, other := openGroup1(t), openGroup1(t)
	w := testWorker(t)
	l := sockets(t, own, w)
	fill(t, other.Addr(), 5) // before the adoption
	inner, err := reuseport.Listener(other.FD(0))
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Addr, 100)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c.LocalAddr()
			c.Close()
		}
	}()
	l.adopt(7, &socket{Listener: inner})
	fill(t, own.Addr(), 3)
	fill(t, other.Addr(), 5)
	counts := map[string]int{}
	for range 13 {
		counts[(<-accepted).String()]++
	}
	if counts[own.Addr().String()] != 3 || counts[other.Addr().String()] != 10 {
		t.Errorf("accepted %v", counts)
	}
	if s := l.seats(); !slices.Contains(s, 7) {
		t.Errorf("seats %v, want 7 among them", s)
	}
	fill(t, other.Addr(), 1)
	l.release(7)
	if got := (<-accepted).String(); got != other.Addr().String() {
		t.Errorf("accepted on %s, want what was queued before the release", got)
	}
	for slices.Contains(l.allSeats(), 7) {
		time.Sleep(time.Millisecond)
	}
	fill(t, other.Addr(), 1)
	if n, err := other.Queued(0); n != 1 || err != nil {
		t.Errorf("%d in the queue of a seat that was given back (%v), want 1", n, err)
	}
	l.Close()
	for range accepted {
	}
}

// TestAdoptAgain: a socket that is given back, and is being emptied, comes back.
// Both leave to others what they have not accepted, and nothing is over before
// both have handed over what they have.
func TestAdoptAgain(t *testing.T) {
	for _, how := range []string{"Close", "Finish"} {
		t.Run(how, func(t *testing.T) {
			own, other := openGroup1(t), openGroup1(t)
			l := sockets(t, own, testWorker(t))
			fill(t, own.Addr(), 1)
			if c, err := l.Accept(); err != nil { // has the sockets accept
				t.Fatal(err)
			} else {
				c.Close()
			}
			fill(t, other.Addr(), 20)
			for hands := range int64(2) {
				inner, err := reuseport.Listener(other.FD(0))
				if err != nil {
					t.Fatal(err)
				}
				l.adopt(7, &socket{Listener: inner})
				for l.inHand.Load() != hands+1 {
					time.Sleep(time.Millisecond)
				}
				if hands == 0 {
					l.release(7)
				}
			}
			lost := 0
			if how == "Close" {
				l.Close()
				lost = 2 // in hand
			} else {
				l.Finish()
				n, err := acceptAll(l)
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				lost = n
			}
			l.mu.Lock()
			for l.running > 0 {
				l.mu.Unlock()
				time.Sleep(time.Millisecond)
				l.mu.Lock()
			}
			l.mu.Unlock()
			if n, err := other.Queued(0); n != 20-lost || err != nil {
				t.Errorf("%d in the queue (%v), want %d", n, err, 20-lost)
			}
		})
	}
}

func (l *listener) allSeats() (seats []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for seat := range l.sockets {
		seats = append(seats, seat)
	}
	return seats
}

// TestAbandon: a worker that never served leaves the queue to others at once.
func TestAbandon(t *testing.T) {
	g := openGroup1(t)
	w := testWorker(t)
	l := sockets(t, g, w)
	w.listeners = []*listener{l}
	fill(t, g.Addr(), 1)
	w.stop(fleet.LevelStop, false, "test")
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after a stop: %v", err)
	}
	if n, err := g.Queued(0); n != 1 || err != nil {
		t.Errorf("%d in the queue (%v), want 1", n, err)
	}
}

// TestStopBeforeAccept: a server that has said that it serves is stopped before
// it calls Accept. What has come by then is served.
func TestStopBeforeAccept(t *testing.T) {
	for range 20 {
		g := openGroup1(t)
		w := testWorker(t)
		l := sockets(t, g, w)
		w.listeners = []*listener{l}
		l.Served(finisher{l: l})
		fill(t, g.Addr(), 20)
		w.stop(fleet.LevelStop, true, "test")
		if n, err := acceptAll(l); n != 20 || !errors.Is(err, net.ErrClosed) {
			t.Fatalf("%d connections and %v, want 20 and net.ErrClosed", n, err)
		}
	}
}

// finisher is a server that gives its listener up when it is told to stop.
type finisher struct {
	supervised.Server
	l *listener
}

func (f finisher) Stop(string, bool) { f.l.Finish() }

// TestStuck: connections that lie about are a lack of progress, a long Accept or
// a full server is not.
func TestStuck(t *testing.T) {
	g := openGroup1(t)
	w := testWorker(t)
	l := sockets(t, g, w)
	w.listeners = []*listener{l}
	handed := make([]uint64, 1)
	if w.stuck(handed, 0) {
		t.Error("stuck before anybody accepts")
	}
	accepting := make(chan net.Conn)
	go func() { c, _ := l.Accept(); accepting <- c }()
	for l.waiting.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if w.stuck(handed, 0) {
		t.Error("stuck in Accept with nobody in the queue")
	}
	fill(t, g.Addr(), 2)
	(<-accepting).Close()
	for l.inHand.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if w.stuck(handed, 0) {
		t.Error("stuck though one was handed over since")
	}
	if w.stuck(handed, 0) {
		t.Error("stuck, though nobody knows what the server waits for")
	}
	l.Served(&recorder{})
	if !w.stuck(handed, 0) {
		t.Error("not stuck, with a connection in hand that nobody takes")
	}
	if w.stuck(handed, 1) {
		t.Error("stuck though a newcomer waits for a place")
	}
}

// recorder is a server that notes what it is told.
type recorder struct {
	supervised.Server
	told []string
}

func (r *recorder) Stop(reason string, quick bool) {
	if quick {
		r.told = append(r.told, "quick")
	} else {
		r.told = append(r.told, "stop")
	}
}
func (r *recorder) EndDelay(string) { r.told = append(r.told, "end delay") }
func (r *recorder) EndNow(string)   { r.told = append(r.told, "now") }

// TestLevels: each level is passed on once, whoever says it how often, and to
// servers that come late.
func TestLevels(t *testing.T) {
	for _, tt := range []struct {
		levels []fleet.Level
		want   []string
	}{
		{[]fleet.Level{1, 1, 1}, []string{"stop"}},
		{[]fleet.Level{1, 2, 1, 2}, []string{"stop", "end delay"}},
		{[]fleet.Level{2, 1}, []string{"quick"}},
		{[]fleet.Level{1, 3}, []string{"stop", "end delay", "now"}},
		{[]fleet.Level{3}, []string{"quick", "now"}},
	} {
		w := testWorker(t)
		r := &recorder{}
		w.serve(r)
		w.serve(r) // a second listener of the same server
		for _, l := range tt.levels {
			w.stop(l, false, "test")
		}
		if !slices.Equal(r.told, tt.want) {
			t.Errorf("levels %v: told %v, want %v", tt.levels, r.told, tt.want)
		}
		late := &recorder{}
		w.serve(late)
		if len(late.told) == 0 {
			t.Errorf("levels %v: a server that comes late is told nothing", tt.levels)
		}
	}
}

// TestLeave: a signal to a group comes twice, as the worker's own and as the
// master's order, and is one.
func TestLeave(t *testing.T) {
	for _, tt := range []struct {
		name   string
		master bool
		do     string // what comes: the master's order, or a signal
		want   fleet.Level
	}{
		{"the group, the master first", true, "order 1, signal, order 2, signal", fleet.LevelQuick},
		{"the group, the worker first", true, "signal, order 1, signal, order 2", fleet.LevelQuick},
		{"a burst", true, "order 1, signal, again, again, again", fleet.LevelStop},
		{"nobody but us", true, "signal", 0},
		{"nobody but us, impatient", true, "signal, signal", fleet.LevelStop},
		{"an orphan in a group", false, "order 1, signal", fleet.LevelStop},
		{"one process", false, "signal, signal, again, signal, signal", fleet.LevelNow},
	} {
		w := testWorker(t)
		w.master = tt.master
		for _, what := range strings.Split(tt.do, ", ") {
			switch what {
			case "order 1":
				w.stop(fleet.LevelStop, true, "order")
			case "order 2":
				w.stop(fleet.LevelQuick, true, "order")
			case "signal":
				w.terms.began = time.Time{} // long ago
				w.leave("signal")
			case "again":
				w.leave("signal")
			}
		}
		close(w.ended)
		if w.level != tt.want {
			t.Errorf("%s: level %d, want %d", tt.name, w.level, tt.want)
		}
	}
}
