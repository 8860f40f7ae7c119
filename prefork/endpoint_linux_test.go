package prefork

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/gate"
	"github.com/seed-235859eb/usher/internal/reuseport"
	"golang.org/x/sys/unix"
)

// testMaster is one that has two seats, and no worker.
func testMaster(t *testing.T) (*Master, *reuseport.Group) {
	t.Helper()
	g, err := reuseport.Open("tcp", "127.0.0.1:0", 2)
	if err != nil {
		t.Fatal(err)
	}
	m := newMaster(Options{Workers: 2}.withDefaults())
	m.sockets.endpoints = []*endpoint{{name: "test", group: g}}
	t.Cleanup(func() {
		g.Close()
		m.hooks.close(time.Minute)
		m.manager.queue.close(time.Minute)
	})
	return m, g
}

func wantQueued(t *testing.T, g *reuseport.Group, want ...int) {
	t.Helper()
	for seat, n := range want {
		if got, err := g.Queued(seat); got != n || err != nil {
			t.Errorf("%d connections in the queue of seat %d (%v), want %d", got, seat, err, n)
		}
	}
}

// TestLiveSteers: new connections go to the seats that are live. With workers,
// siblings that adopt the others would hide it if they did not.
func TestLiveSteers(t *testing.T) {
	m, g := testMaster(t)
	m.setLive(fleet.Live{Seats: []int{1}, Orphans: []int{0}})
	fill(t, g.Addr(), 20)
	wantQueued(t, g, 0, 20)
	m.setLive(fleet.Live{Seats: []int{0}, Orphans: []int{1}})
	fill(t, g.Addr(), 10)
	wantQueued(t, g, 10, 20)
}

// TestShutSeat: a seat that will be closed gets no new handshakes, whoever sends
// them there, if the kernel lets this process attach a filter. Nobody is kept
// out of the others.
func TestShutSeat(t *testing.T) {
	m, g := testMaster(t)
	m.setLive(fleet.Live{Seats: []int{1}})
	fill(t, g.Addr(), 1)
	m.sockets.shutSeat(1)
	_, other := testMaster(t)
	if err := other.ShutSeat(0); err == nil {
		// Dropped is neither refused nor accepted: the connect hangs.
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if c, err := new(net.Dialer).DialContext(ctx, "tcp", g.Addr().String()); err == nil {
			c.Close()
			t.Error("a handshake with a seat that closes")
		}
	} else if !errors.Is(err, unix.EPERM) {
		t.Fatal(err)
	}
	wantQueued(t, g, 0, 1)
	m.setLive(fleet.Live{Seats: []int{0}})
	fill(t, g.Addr(), 5)
	m.sockets.closeSeat(1)
	fill(t, g.Addr(), 5)
	wantQueued(t, g, 10)
}

// toMaster is a worker's link to a master in the same process.
type toMaster struct {
	m *Master
	w *Worker
}

func (l toMaster) send(f frame, _ ...int) error {
	if f.Type == frameShut {
		l.m.sockets.shutEndpoint(f.Endpoint)
		return l.w.handle(frame{Type: frameShut, Ask: f.Ask}, nil)
	}
	return nil
}

// TestFinalStopShutsAll: the first worker that is through with its lame duck has
// the sockets of all seats shut. A connection that came to one that is, while
// another is not, would wait a second for its answer.
func TestFinalStopShutsAll(t *testing.T) {
	for _, closing := range []bool{false, true} {
		m, g := testMaster(t)
		w := testWorker(t)
		w.link, w.master = toMaster{m, w}, true
		l := sockets(t, g, w)
		other, err := reuseport.Listener(g.FD(1)) // as its worker has it
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		w.final.Store(true)
		m.sockets.closing = closing
		out, err := l.Shut()
		if err != nil {
			t.Fatal(err)
		}
		if out.Mechanism != gate.Interface {
			t.Skipf("%+v", out)
		}
		// A master that does not stop shuts nothing, whatever it is asked.
		p, err := l.Handshakes()
		if err != nil {
			t.Skip(err)
		}
		want := gate.Pending{Open: 1}
		if closing {
			want = gate.Pending{}
		}
		if p != want {
			t.Fatalf("closing %v: %+v, want %+v", closing, p, want)
		}
		if !closing {
			continue
		}
		for range 20 {
			if c, err := net.Dial("tcp", g.Addr().String()); err == nil {
				c.Close()
				t.Error("connected after all was shut")
			} else if !errors.Is(err, unix.ECONNREFUSED) {
				t.Error(err)
			}
		}
		if g.FD(0) >= 0 {
			t.Error("the master has kept its sockets")
		}
	}
}
