package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/seed-235859eb/usher"
)

// maxStop is the budget for a stop's end.
const maxStop = 5 * time.Millisecond

// hold is how long the last connection stays after the stop began: longer than
// HandshakeGrace, and spread over a period of http.Server's polling.
func hold() time.Duration { return 400*time.Millisecond + rand.N(500*time.Millisecond) }

// A stopCase is a way for the last connection to leave.
type stopCase struct {
	name string
	kind string
	path string // of the request that is under way, or answered, when the stop begins
	// leave ends c and returns when the client knew of its end.
	leave func(c *net.TCPConn, st *stopping) (time.Time, error)
}

var stopCases = []stopCase{
	{"usher: request in flight, its client closes", usherKind, "/hold", leaveAnswered},
	{"usher: next request, answered with close", usherKind, "/", leaveTold},
	{"usher: hijacked connection, its client closes", usherKind, "/hijack", leaveClosing},
	{"bare: request in flight, its client closes", bareKind, "/hold", leaveAnswered},
}

// measureStop measures the time from the end of the last connection, as its
// client sees it, to the return of Shutdown.
func measureStop(ctx context.Context, l *lab) error {
	took := make([][]float64, len(stopCases))
	for range l.stopRounds {
		for i, sc := range stopCases {
			d, err := sc.run(ctx, l.usherSlots)
			if err != nil {
				return fmt.Errorf("%s: %w", sc.name, err)
			}
			took[i] = append(took[i], d.Seconds()*1e3)
		}
	}
	l.heading(fmt.Sprintf("stop: from the end of the last connection to the return of Shutdown, %d stops for each line", l.stopRounds))
	worst := 0.0
	l.table(func(w io.Writer) {
		fmt.Fprintln(w, "ms\tmedian\tmax")
		for i, sc := range stopCases {
			s := spreadOf(took[i])
			fmt.Fprintf(w, "%s\t%.3f\t%.3f\n", sc.name, s.median, s.max)
			if sc.kind == usherKind {
				worst = max(worst, s.max)
			}
		}
	})
	l.say(false, "budget: usher's max <= %v: %s (http.Server does not wait for hijacked connections, and closes idle ones at once)", maxStop, atMost(maxStop.Seconds()*1e3, worst, worst, worst))
	return nil
}

// stopping is a server that is being stopped.
type stopping struct {
	release chan struct{} // closed to let /hold answer
	entered chan struct{} // has an element when a handler runs
}

// run makes one stop.
func (sc stopCase) run(ctx context.Context, slots int) (_ time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("the stop does not end"))
	defer cancel()
	st := &stopping{release: make(chan struct{}), entered: make(chan struct{}, 1)}
	s, err := newServer(sc.kind, slots, st.handler(ctx))
	if err != nil {
		return 0, err
	}
	l, err := usher.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Close()
		if serr := <-served; serr != nil && !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
	}()

	c, err := dial(l.Addr().String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: usher.test\r\n\r\n", sc.path); err != nil {
		return 0, err
	}
	select {
	case <-st.entered:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}

	type end struct {
		at  time.Time
		err error
	}
	returned := make(chan end, 1)
	go func() {
		err := s.Shutdown(ctx)
		returned <- end{time.Now(), err}
	}()
	left, err := time.Time{}, pause(ctx, hold())
	if err == nil {
		left, err = sc.leave(c, st)
	}
	if err != nil {
		cancel()
	}
	e := <-returned
	if err := errors.Join(err, e.err); err != nil {
		return 0, err
	}
	return e.at.Sub(left), nil
}

// handler serves /, /hold and /hijack.
func (st *stopping) handler(ctx context.Context) http.Handler {
	enter := func() {
		select {
		case st.entered <- struct{}{}:
		default:
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		enter()
		answerOK(w, r)
	})
	mux.HandleFunc("/hold", func(w http.ResponseWriter, r *http.Request) {
		enter()
		select {
		case <-st.release:
		case <-ctx.Done():
		}
		answerOK(w, r)
	})
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer c.Close()
		enter()
		io.Copy(io.Discard, rw)
	})
	return mux
}

// leaveAnswered lets the request that is under way be answered, and closes.
func leaveAnswered(c *net.TCPConn, st *stopping) (time.Time, error) {
	close(st.release)
	if _, err := readOK(c); err != nil {
		return time.Time{}, err
	}
	return leaveClosing(c, st)
}

// leaveTold sends another request and reads until the server closes.
func leaveTold(c *net.TCPConn, st *stopping) (time.Time, error) {
	if _, err := readOK(c); err != nil {
		return time.Time{}, err
	}
	if _, err := c.Write(getRoot); err != nil {
		return time.Time{}, err
	}
	if _, err := readOK(c); err != nil {
		return time.Time{}, err
	}
	if n, err := c.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		return time.Time{}, fmt.Errorf("after the last response: %d bytes, %v", n, err)
	}
	return leaveClosing(c, st)
}

// leaveClosing closes the connection.
func leaveClosing(c *net.TCPConn, _ *stopping) (time.Time, error) {
	at := time.Now()
	return at, c.Close()
}
