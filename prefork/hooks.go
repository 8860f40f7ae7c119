package prefork

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// Hooks are functions that are called in the master, one after the other, in the
// order of what happened. Nil means none. The master does not wait for a hook: its
// context ends after 10 s, and a hook that has not returned by then is left behind.
// A panic is logged. The hooks that are still to be called when [Run] is about to
// return get 10 s together.
//
// BeforeWorkerStart is different: its worker starts when it has returned. It may run
// beside other hooks, and for several workers at once.
type Hooks struct {
	// MasterStart is called once, when the sockets are open. The program may keep
	// the Master, to restart or scale the fleet: all workers of a master.
	MasterStart func(ctx context.Context, m *Master)

	// BeforeWorkerStart is called before a process is started; the PID of w is 0
	// then. AfterWorkerStart is called after that.
	BeforeWorkerStart func(ctx context.Context, w WorkerInfo)
	AfterWorkerStart  func(ctx context.Context, w WorkerInfo)

	// WorkerReady is called when a worker is ready.
	WorkerReady func(ctx context.Context, w WorkerInfo)

	// WorkerExit is called when a worker's process has ended.
	WorkerExit func(ctx context.Context, e WorkerExit)

	// RestartFinished is called at the end of a phased restart, with the error that
	// [Master.Restart] returns. It is called again if a restart that had succeeded
	// is taken back, with a [*RestartError] whose TakenBack is set.
	RestartFinished func(ctx context.Context, generation int, err error)
}

// runHook calls f, and returns when f has, or hookTimeout is over.
func runHook(log *slog.Logger, name string, f func(ctx context.Context)) {
	ctx, cancel := context.WithTimeout(context.Background(), hookTimeout)
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		defer cancel()
		defer func() {
			if p := recover(); p != nil {
				log.Error("prefork: a hook panicked", "hook", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			}
		}()
		f(ctx)
	}()
	select {
	case <-returned:
	case <-ctx.Done():
		select {
		case <-returned:
		case <-time.After(hookTimeout / 100):
			log.Error("prefork: a hook hangs, going on without it", "hook", name)
		}
	}
}

// A queue calls functions one after the other, in a goroutine of its own.
type queue struct {
	mu     sync.Mutex
	wake   *sync.Cond
	todo   []func()
	busy   bool // one of them is being called
	closed bool
	rest   func() // called when all that was added has been called
	done   chan struct{}
}

func newQueue(rest func()) *queue {
	q := &queue{done: make(chan struct{}), rest: rest}
	q.wake = sync.NewCond(&q.mu)
	go q.run()
	return q
}

func (q *queue) add(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.todo = append(q.todo, f)
	q.wake.Signal()
}

func (q *queue) run() {
	defer close(q.done)
	for {
		q.mu.Lock()
		for len(q.todo) == 0 && !q.closed {
			q.wake.Wait()
		}
		if len(q.todo) == 0 {
			q.mu.Unlock()
			return
		}
		f := q.todo[0]
		q.todo = q.todo[1:]
		q.busy = true
		q.mu.Unlock()
		f()
		q.mu.Lock()
		q.busy = false
		idle := len(q.todo) == 0
		q.mu.Unlock()
		if idle {
			q.rest()
		}
	}
}

// idle reports whether all that was added has been called.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.todo) == 0 && !q.busy
}

// close waits until all that was added has been called, or the limit is over:
// one that hangs is left behind after hookTimeout, but there may be many.
func (q *queue) close(limit time.Duration) {
	q.mu.Lock()
	q.closed = true
	q.wake.Signal()
	q.mu.Unlock()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-q.done:
	case <-t.C:
	}
}

// flush waits until all that was added so far has been called.
func (q *queue) flush() {
	reached := make(chan struct{})
	q.add(func() { close(reached) })
	<-reached
}
