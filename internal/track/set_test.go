package track

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed-235859eb/usher/internal/memnet"
)

// An owner remembers what it was told.
type owner struct {
	mu   sync.Mutex
	told []Events
	with func(*Conn)
}

func (o *owner) Notice(c *Conn, e Events) {
	if o.with != nil {
		o.with(c)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told = append(o.told, e)
}

func (o *owner) take() []Events {
	o.mu.Lock()
	defer o.mu.Unlock()
	told := o.told
	o.told = nil
	return told
}

// life has a connection become quiet, HTTP/2, hijacked, and closed, and returns
// what its owner was told after each.
func life(o *owner, set *Set) (quiet, http2, hijacked, left []Events) {
	_, b := memnet.Pipe()
	c := set.Add(b)
	c.wait(wholeBuffer)
	quiet = o.take()
	c.noteRead([]byte(http2Preface))
	http2 = o.take()
	c.Report(c, http.StateHijacked)
	hijacked = o.take()
	c.Close()
	left = o.take()
	return quiet, http2, hijacked, left
}

// TestWant: of each event the owner is told if it wants that, and else not.
func TestWant(t *testing.T) {
	o := &owner{}
	set := NewSet(o)
	for _, stop := range []bool{false, true} {
		if stop {
			set.BeginStop()
		}
		for want := range Left | Quiet | Detached + 1 {
			set.Want(want)
			if set.Stopping() != stop {
				t.Fatalf("Want(%b) changed Stopping to %v", want, !stop)
			}
			expect := func(when string, e Events, got []Events) {
				wanted := want&e != 0
				if wanted && (len(got) == 0 || slices.ContainsFunc(got, func(g Events) bool { return g != e })) || !wanted && len(got) > 0 {
					t.Errorf("Want(%b), %s: told %b", want, when, got)
				}
			}
			quiet, http2, hijacked, left := life(o, set)
			expect("quiet", Quiet, quiet)
			expect("HTTP/2", Detached, http2)
			expect("hijacked", Detached, hijacked)
			expect("closed", Left, left)
			if len(left) > 1 {
				t.Errorf("Want(%b): told of the end %d times", want, len(left))
			}
		}
	}
	// What a Set notes for itself is nobody else's to want.
	other := NewSet(o)
	other.Want(^Events(0))
	if other.Stopping() || other.wanted(timed) {
		t.Error("wanting all events began a stop")
	}
}

// TestNoticeWithoutALock: an owner may ask anything, of the Set and of the
// connection, and close it.
func TestNoticeWithoutALock(t *testing.T) {
	o := &owner{}
	set := NewSet(o)
	o.with = func(c *Conn) {
		set.Open()
		set.Counts()
		set.CountReported()
		set.Want(Left | Quiet | Detached)
		c.State()
		c.Cut()
	}
	set.Want(Left | Quiet | Detached)
	life(o, set)
	set.BeginStop()
	life(o, set)
	if open, _ := set.Open(); open != 0 {
		t.Errorf("%d open", open)
	}
}

// TestReadWaitsIsTold: a connection that becomes quiet because a Read waits tells
// that when it is so, not before.
func TestQuietIsToldWhenItIsSo(t *testing.T) {
	o := &owner{}
	set := NewSet(o)
	set.Want(Quiet)
	var st State
	o.with = func(c *Conn) { st = c.State() }
	client, inner := connect(t, "tcp")
	c := set.Add(inner)
	defer client.Close()
	sides{t: t, client: client, server: c}.readLater("x", nil, func() {
		eventually(t, "the owner is told", func() bool { return len(o.take()) == 1 })
		if !st.Quiet() {
			t.Errorf("told that it is quiet, which it was not: %s", describe(st))
		}
		send(t, client, "x")
	})
	c.Close()
}

// TestSetConcurrently: connections come, change, and go while a stop begins and
// others look. All are counted once.
func TestSetConcurrently(t *testing.T) {
	for range 5 {
		var notices [Detached + 1]atomic.Int64
		o := ownerFunc(func(_ *Conn, e Events) { notices[e].Add(1) })
		set := NewSet(o)
		set.Want(Left)
		const clients, each = 8, 200
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for range each {
					_, b := memnet.Pipe()
					c := set.Add(b)
					for range rand.IntN(4) {
						switch rand.IntN(6) {
						case 0:
							c.Report(c, http.StateActive)
						case 1:
							c.Report(c, http.StateIdle)
						case 2:
							c.wait(wholeBuffer)
						case 3:
							c.Report(c, http.StateHijacked)
						case 4:
							c.Retire()
						case 5:
							c.noteRead([]byte(http2Preface))
						}
					}
					c.change(clientClosed) // none lingers
					if rand.IntN(2) == 0 {
						c.Cut() // closes in a goroutine
					}
					c.Close()
				}
			})
		}
		quit := make(chan struct{})
		for range 2 {
			wg.Go(func() {
				for {
					select {
					case <-quit:
						return
					default:
					}
					n := set.Counts()
					var fates int
					for _, f := range n.Fates {
						fates += int(f)
					}
					if n.Accepted > 0 && set.Stopping() && n.AtStop > 0 && fates+n.Open != n.AtStop+int(n.AcceptedLate) {
						t.Errorf("%d at the stop, %d since; %d open, fates %v", n.AtStop, n.AcceptedLate, n.Open, n.Fates)
						return
					}
					set.Each(func(c *Conn, st State) {
						if st.Quiet() && rand.IntN(10) == 0 {
							c.Retire()
						}
					})
					if all, attached := set.Open(); attached > all || attached < 0 {
						t.Errorf("%d open, %d attached", all, attached)
						return
					}
				}
			})
		}
		for set.Counts().Accepted < clients*each/2 {
			set.CountReported()
		}
		set.BeginStop()
		set.BeginStop() // does nothing
		go func() {
			for {
				if n := set.Counts(); n.Accepted == clients*each && n.Open == 0 {
					close(quit)
					return
				}
			}
		}()
		wg.Wait()
		n := set.Counts()
		var fates uint64
		for _, f := range n.Fates {
			fates += f
		}
		if all, attached := set.Open(); all != 0 || attached != 0 || n.Accepted != clients*each || fates != uint64(n.AtStop)+n.AcceptedLate {
			t.Errorf("%d open, %d attached; %+v", all, attached, n)
		}
		if left := notices[Left].Load(); left != clients*each {
			t.Errorf("told of %d ends of %d", left, clients*each)
		}
	}
}

type ownerFunc func(*Conn, Events)

func (f ownerFunc) Notice(c *Conn, e Events) { f(c, e) }

// TestLate: a request is late whether it runs when the stop begins, or begins
// afterwards.
func TestLate(t *testing.T) {
	for range 2000 {
		set := NewSet(nobody{})
		_, b := memnet.Pipe()
		c := set.Add(b)
		var wg sync.WaitGroup
		wg.Go(set.BeginStop)
		wg.Go(func() { c.Report(c, http.StateActive) })
		wg.Wait()
		if c.State()&late == 0 {
			t.Fatal("a request that runs in a stop is not late")
		}
		c.change(clientClosed)
		c.Close()
		if n := set.Counts(); n.Fates[Served] != 1 {
			t.Fatalf("fates %v", n.Fates)
		}
	}
}

// TestQuietSinceTheStop: never before it began, nor before the connection was
// accepted.
func TestQuietSinceTheStop(t *testing.T) {
	set := NewSet(nobody{})
	_, b := memnet.Pipe()
	c := set.Add(b)
	if c.QuietSince() != c.accepted {
		t.Errorf("quiet since %v, accepted at %v", c.QuietSince(), c.accepted)
	}
	set.KeepTime()
	from := c.QuietSince()
	if from <= c.accepted {
		t.Error("quiet since before somebody kept the time")
	}
	set.KeepTime()
	if c.QuietSince() != from {
		t.Error("time was kept already")
	}
	c.Report(c, http.StateIdle)
	idle := c.QuietSince()
	if idle <= from {
		t.Error("it became idle later")
	}
	set.BeginStop()
	stopped := c.QuietSince()
	if stopped <= idle {
		t.Error("quiet since before the stop")
	}
	if set.BeginStop(); c.QuietSince() != stopped {
		t.Error("the stop began twice")
	}
	c.Close()
}
