package prefork

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/supervised"
)

// A Worker has the listeners that the program's function is to serve, and speaks
// with the master. Without a master there is one Worker, for the whole program. All
// methods may be called from many goroutines at once.
type Worker struct {
	seat, generation int
	opts             Options
	log              *slog.Logger
	listeners        []*listener
	byName           map[string]net.Listener

	ctx    context.Context // the function's
	cancel context.CancelCauseFunc
	final  atomic.Bool // the sockets close for good
	ready  atomic.Bool
	ended  chan struct{}

	mu      sync.Mutex
	link    talker // to the master, or to one who does for it; may be nil
	master  bool   // there is one
	servers []supervised.Server
	level   fleet.Level
	reason  string
	terms   burst
	told    int // bursts of SIGTERM that came to this process itself
	asked   int // questions so far
	answers map[int]chan frame
}

// talker is the link to the master.
type talker interface {
	send(f frame, fds ...int) error
}

func newWorker(ctx context.Context, opts Options, seat, generation int) *Worker {
	w := &Worker{
		seat: seat, generation: generation,
		opts: opts, log: opts.Logger,
		byName:  map[string]net.Listener{},
		answers: map[int]chan frame{},
		ended:   make(chan struct{}),
	}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	return w
}

func (w *Worker) addListener(name string, s *socket) {
	l := newListener(w, name, w.seat, s)
	w.listeners = append(w.listeners, l)
	w.byName[name] = l
}

// Listener returns the listener of the first endpoint. Pass it to
// [usher.Server.Run] or Serve, or to [usher.NewListener] for a server that is not
// net/http's. These stop without losing a request. A server that closes the
// listener itself loses the connections that it has accepted and not served.
func (w *Worker) Listener() net.Listener { return w.listeners[0] }

// Listeners returns all listeners, by the names of their endpoints.
func (w *Worker) Listeners() map[string]net.Listener {
	m := make(map[string]net.Listener, len(w.byName))
	for name, l := range w.byName {
		m[name] = l
	}
	return m
}

// Seat returns the number of the worker's seat, from 0 on.
func (w *Worker) Seat() int { return w.seat }

// Generation returns the number of the worker's generation: the first workers have
// 1, and each restart begins the next. Without a master it is 0.
func (w *Worker) Generation() int { return w.generation }

// Ready tells the master that the worker serves. An [usher.Server] calls it when
// it begins to serve one of the listeners. Calls after the first do nothing.
func (w *Worker) Ready() {
	if !w.ready.Swap(true) {
		w.tell(frame{Type: frameBeat, Ready: true})
	}
}

// ErrNoMaster is returned by [Worker.Fleet] if the program has no master, or if its
// master has died.
var ErrNoMaster = errors.New("prefork: no master")

// Fleet asks the master for its Stats. Of the output of workers that have ended
// they have about the last line.
func (w *Worker) Fleet(ctx context.Context) (Stats, error) {
	f, err := w.ask(ctx, frame{Type: frameFleet})
	if err != nil {
		return Stats{}, err
	}
	if f.Error != "" {
		return Stats{}, fmt.Errorf("prefork: the master's answer: %s", f.Error)
	}
	var s Stats
	if err := json.Unmarshal(f.Fleet, &s); err != nil {
		return Stats{}, fmt.Errorf("prefork: the master's answer: %w", err)
	}
	return s, nil
}

// ask sends f to the master and returns its answer.
func (w *Worker) ask(ctx context.Context, f frame) (frame, error) {
	answer := make(chan frame, 1)
	w.mu.Lock()
	if !w.master {
		w.mu.Unlock()
		return frame{}, ErrNoMaster
	}
	w.asked++
	n := w.asked
	w.answers[n] = answer
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.answers, n)
		w.mu.Unlock()
	}()
	f.Ask = n
	w.tell(f)
	select {
	case f := <-answer:
		return f, nil
	case <-ctx.Done():
		return frame{}, fmt.Errorf("prefork: the master did not answer: %w", context.Cause(ctx))
	case <-w.ended:
		return frame{}, ErrNoMaster
	}
}

// alone reports whether there is no master, or no longer.
func (w *Worker) alone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.master
}

// tell sends f to the master, if there is one. What does not get through is
// said again by the next heartbeat.
func (w *Worker) tell(f frame) {
	w.mu.Lock()
	link := w.link
	w.mu.Unlock()
	if link == nil {
		return
	}
	if err := link.send(f); err != nil && !errors.Is(err, net.ErrClosed) {
		w.log.Warn("prefork: cannot reach the master", "error", err)
	}
}

// serve is called by a server that begins to serve a listener.
func (w *Worker) serve(s supervised.Server) {
	w.mu.Lock()
	known := false
	for _, o := range w.servers {
		known = known || o == s
	}
	if !known {
		w.servers = append(w.servers, s)
	}
	level, reason := w.level, w.reason
	w.mu.Unlock()
	if level > 0 {
		order(s, 0, level, reason)
		return
	}
	w.Ready()
}

// order takes s from one level of stopping to another.
func order(s supervised.Server, from, to fleet.Level, reason string) {
	if from < fleet.LevelStop {
		s.Stop(reason, to >= fleet.LevelQuick)
	} else if from < fleet.LevelQuick && to >= fleet.LevelQuick {
		s.EndDelay(reason)
	}
	if to >= fleet.LevelNow {
		s.EndNow(reason)
	}
}

// stop has the worker stop, or stop faster. Final means that nobody goes on with
// the sockets.
func (w *Worker) stop(level fleet.Level, final bool, reason string) {
	if final {
		w.final.Store(true)
	}
	w.mu.Lock()
	was := w.level
	if level <= was {
		w.mu.Unlock()
		return
	}
	w.level, w.reason = level, reason
	servers := w.servers
	w.mu.Unlock()
	for _, s := range servers {
		order(s, was, level, reason)
	}
	for _, l := range w.listeners {
		l.abandon()
	}
	w.cancel(errors.New(reason))
}

// leave is called when somebody other than the master wants this worker to
// stop. The master puts a successor in its place first; or it is about to stop
// all, and then the sockets need another treatment.
func (w *Worker) leave(reason string) {
	w.mu.Lock()
	more := w.terms.more(time.Now())
	if !more {
		w.told++
	}
	// The master's orders are not added up with these: who signals a group, or
	// all processes, tells both of us.
	told := min(fleet.Level(w.told), fleet.LevelNow)
	alone := !w.master
	level := w.level
	w.mu.Unlock()
	switch {
	case more:
	case alone:
		w.stop(told, true, reason)
	case level > 0:
		w.stop(told, false, reason)
	case told > fleet.LevelStop:
		w.stop(fleet.LevelStop, false, reason)
	default:
		w.tell(frame{Type: frameLeaving, Reason: reason})
		w.log.Info("prefork: told to stop, asking the master for a successor", "reason", reason)
		go func() {
			t := time.NewTimer(leaveTimeout * 3 / 2)
			defer t.Stop()
			select {
			case <-t.C:
				w.stop(fleet.LevelStop, false, reason)
			case <-w.ended:
			}
		}()
	}
}

// orphaned is called when the master is gone: nobody holds the sockets any more,
// and nobody would replace this worker.
func (w *Worker) orphaned() {
	w.mu.Lock()
	w.link, w.master = nil, false
	w.mu.Unlock()
	select {
	case <-w.ended:
		return
	default:
	}
	w.stop(fleet.LevelStop, true, "the master is gone")
	w.log.Warn("prefork: the master is gone, stopping")
}

// endDelay ends a delay before the stop of a worker without a master, as another one
// waits for its sockets.
func (w *Worker) endDelay() {
	w.mu.Lock()
	stopping := w.level >= fleet.LevelStop
	w.mu.Unlock()
	if stopping {
		w.stop(fleet.LevelQuick, true, "another master waits")
	}
}

// handle carries out what the master says.
func (w *Worker) handle(f frame, adopt func(seat int, endpoint string)) error {
	switch f.Type {
	case frameStop:
		w.stop(f.Level, f.Final, cmp.Or(f.Reason, "the master says so"))
	case frameOrphans:
		for _, fresh := range f.Fresh {
			seat, endpoint, err := freshOf(fresh)
			if err != nil {
				return err
			}
			adopt(seat, endpoint)
		}
		keep := map[int]bool{w.seat: true}
		for _, seat := range f.Seats {
			keep[seat] = true
		}
		for _, l := range w.listeners {
			for _, seat := range l.seats() {
				if !keep[seat] {
					l.release(seat)
				}
			}
		}
	case frameFleet, frameShut:
		w.mu.Lock()
		answer := w.answers[f.Ask]
		delete(w.answers, f.Ask)
		w.mu.Unlock()
		if answer != nil {
			answer <- f
		}
	}
	return nil
}

// seats returns whose sockets l accepts from.
func (l *listener) seats() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	var seats []int
	for seat, s := range l.sockets {
		if !s.finishing {
			seats = append(seats, seat)
		}
	}
	return seats
}

// run calls the program's function and beats meanwhile.
func (w *Worker) run(f func(context.Context, *Worker) error) error {
	var beats sync.WaitGroup
	if w.link != nil {
		beats.Go(w.beat)
	}
	defer beats.Wait()
	defer close(w.ended)
	defer w.cancel(context.Canceled)
	defer w.closeListeners()
	return f(w.ctx, w)
}

func (w *Worker) closeListeners() {
	for _, l := range w.listeners {
		l.Close()
	}
}

// interrupt is leave for a person at a terminal, who does not want to wait for
// the silent.
func (w *Worker) interrupt(reason string) {
	w.mu.Lock()
	level := max(w.level+1, fleet.LevelQuick)
	w.mu.Unlock()
	w.stop(level, true, reason)
}
