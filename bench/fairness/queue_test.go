package fairness

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// A protocol that a promise is checked over.
type protocol bool

const (
	overHTTP1 protocol = false
	overHTTP2 protocol = true
)

// checkWriteTimeout has a request wait three times as long as WriteTimeout.
func checkWriteTimeout(p protocol) func(*testing.T, Contender) outcome {
	return func(t *testing.T, c Contender) outcome {
		const timeout = 100 * time.Millisecond
		g := newGate()
		addr := start(t, c, unlimitedQueue(1), g.ServeHTTP, func(srv *http.Server) { srv.WriteTimeout = timeout })
		g.hold(t, addr)
		time.AfterFunc(3*timeout, func() { close(g.release) })
		status, _, err := do(within(t, patience), newClient(t, bool(p)), "GET", "http://"+addr, nil)
		switch {
		case err != nil:
			return outcome{false, "connection cut"}
		default:
			return outcome{status == http.StatusOK, fmt.Sprint("status ", status)}
		}
	}
}

// checkClientLeaves has a client close its connection while its request waits,
// of whose body some has come. The handler must not run.
func checkClientLeaves(t *testing.T, c Contender) outcome {
	g := newGate()
	var ran atomic.Int32
	addr := start(t, c, unlimitedQueue(1), func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/left" {
			ran.Add(1)
		}
		g.ServeHTTP(w, r)
	})
	g.hold(t, addr)
	leaver := dial(t, addr)
	io.WriteString(leaver, "POST /left HTTP/1.1\r\nHost: bench.test\r\nContent-Length: 10\r\n\r\nsome")
	time.Sleep(settle)
	leaver.Close()
	time.Sleep(settle)
	// Behind it, so that its turn would have come before this one is answered.
	last := dial(t, addr)
	last.get("/last")
	time.Sleep(settle)
	close(g.release)
	if _, err := last.answer(patience); err != nil {
		return outcome{false, "those behind it are not served"}
	}
	if ran.Load() > 0 {
		return outcome{false, "its handler ran"}
	}
	return outcome{true, "its handler never ran"}
}

// fillQueue takes the one slot and both places in the queue.
func fillQueue(t *testing.T, c Contender) (addr string, waiting []*rawConn, g *gate) {
	g = newGate()
	addr = start(t, c, Limits{
		Slots:    1,
		MaxQueue: 2,
		MaxWait:  time.Minute,
		Exempt:   func(r *http.Request) bool { return r.URL.Path == "/healthz" },
	}, g.ServeHTTP)
	waiting = append(waiting, g.hold(t, addr))
	for range 2 {
		conn := dial(t, addr)
		conn.get("/hold")
		waiting = append(waiting, conn)
	}
	time.Sleep(settle)
	return addr, waiting, g
}

// checkFullQueue wants an answer for one more, and those before it served.
func checkFullQueue(t *testing.T, c Contender) outcome {
	addr, waiting, g := fillQueue(t, c)
	conn := dial(t, addr)
	conn.get("/hold")
	resp, err := conn.answer(prompt)
	close(g.release)
	if err != nil {
		return outcome{false, "no answer"}
	}
	for _, w := range waiting {
		if served, err := w.answer(patience); err != nil || served.StatusCode != http.StatusOK {
			return outcome{false, "a request in the queue was lost"}
		}
	}
	rejected := resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusTooManyRequests
	after := resp.Header.Get("Retry-After")
	return outcome{rejected && after != "", fmt.Sprintf("status %d, Retry-After %q", resp.StatusCode, after)}
}

// checkHealth asks for an exempt path of a server with a full queue.
func checkHealth(t *testing.T, c Contender) outcome {
	addr, _, g := fillQueue(t, c)
	defer close(g.release)
	conn := dial(t, addr)
	began := time.Now()
	conn.get("/healthz")
	resp, err := conn.answer(prompt)
	if err != nil {
		return outcome{false, "no answer"}
	}
	return outcome{resp.StatusCode == http.StatusOK, fmt.Sprintf("status %d after %s", resp.StatusCode, ms(time.Since(began)))}
}

// checkQueueWait compares what the handler is told with what its client saw.
func checkQueueWait(t *testing.T, c Contender) outcome {
	if c.QueueWait == nil {
		return outcome{false, "nothing tells it"}
	}
	const wait = 300 * time.Millisecond
	g := newGate()
	told := make(chan time.Duration, 1)
	addr := start(t, c, unlimitedQueue(1), func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			told <- c.QueueWait(r.Context())
		}
		g.ServeHTTP(w, r)
	})
	g.hold(t, addr)
	time.AfterFunc(wait, func() { close(g.release) })
	began := time.Now()
	if _, _, err := do(within(t, patience), newClient(t, false), "GET", "http://"+addr, nil); err != nil {
		return outcome{false, err.Error()}
	}
	took, said := time.Since(began), <-told
	return outcome{said > wait/2 && said <= took, fmt.Sprintf("told %s of %s", ms(said), ms(took))}
}

// checkSlowUpload has a client stop in the middle of its body, and another ask
// for something.
func checkSlowUpload(t *testing.T, c Contender) outcome {
	reading := make(chan struct{}, 1)
	addr := start(t, c, unlimitedQueue(1), func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			reading <- struct{}{}
		}
		io.Copy(io.Discard, r.Body)
		ok(w, r)
	})
	upload := dial(t, addr)
	io.WriteString(upload, "POST / HTTP/1.1\r\nHost: bench.test\r\nContent-Length: 10\r\n\r\nsome")
	<-reading
	other := dial(t, addr)
	began := time.Now()
	other.get("/")
	_, err := other.answer(prompt)
	took := time.Since(began)
	io.WriteString(upload, "thing.")
	if _, err := upload.answer(patience); err != nil {
		return outcome{false, "the upload failed"}
	}
	if err != nil {
		return outcome{false, "others wait for it"}
	}
	return outcome{true, "others wait " + ms(took)}
}

// checkBodyDeadlock has a stream that has the slot wait for its body, while one
// that waits for the slot fills the window of the connection with its own.
func checkBodyDeadlock(t *testing.T, c Contender) outcome {
	const queuedSize, lateSize, clientTimeout = 4 << 20, 200_000, 3 * time.Second
	begun := make(chan struct{}, 2)
	addr := start(t, c, unlimitedQueue(1), func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		if n, err := io.Copy(io.Discard, r.Body); err == nil {
			fmt.Fprint(w, n)
		}
	})
	client := newClient(t, true)
	post := func(ctx context.Context, body io.Reader) <-chan string {
		got := make(chan string, 1)
		go func() {
			_, text, _ := do(ctx, client, "POST", "http://"+addr, body)
			got <- text
		}()
		return got
	}
	ctx := within(t, clientTimeout)
	late, rest := io.Pipe()
	holder := post(ctx, late)
	rest.Write([]byte("x"))
	<-begun
	began := time.Now()
	queued := post(ctx, io.LimitReader(zeros{}, queuedSize))
	time.Sleep(settle) // the window is full, or all has been read
	go func() {
		rest.Write(make([]byte, lateSize-1))
		rest.Close()
	}()
	a, b := <-holder, <-queued
	late.Close()
	took := time.Since(began)
	if a != fmt.Sprint(lateSize) || b != fmt.Sprint(queuedSize) {
		return outcome{false, "both hang until the client's timeout"}
	}
	return outcome{took < clientTimeout/2, "both done in " + ms(took)}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
