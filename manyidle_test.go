package usher

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/memnet"
)

// slowListener has connections whose Close takes a while, as on a machine that
// has no time.
type slowListener struct {
	*memnet.Listener
	takes func()
}

type slowConn struct {
	net.Conn
	takes func()
}

func (l slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &slowConn{c, l.takes}, nil
}

func (c *slowConn) Close() error {
	c.takes()
	return c.Conn.Close()
}

// TestStreamGraceWithAHangingClose: a hijacked connection whose Close hangs does
// not hang the stop.
func TestStreamGraceWithAHangingClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		l := slowListener{memnet.Listen(), func() { <-release }}
		s := Wrap(newHTTPServer(h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).Hijack()
		})), Options{Logger: silent, Shutdown: ShutdownOptions{StreamGrace: 5 * time.Second}})
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		c, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, request)
		synctest.Wait()
		began := time.Now()
		result := make(chan error, 1)
		go func() { result <- s.Shutdown(context.Background()) }()
		time.Sleep(2 * defaultGracePeriod)
		select {
		case err := <-result:
			if err == nil {
				t.Error("Shutdown returned nil although a connection was not closed")
			}
		default:
			t.Errorf("Shutdown goes on after %v", time.Since(began))
		}
		close(release)
		<-served
	})
}

// TestCutIdleConnectionsAreCut: what time was too short for has not been left by
// its client.
func TestCutIdleConnectionsAreCut(t *testing.T) {
	run(t, h1Modes, func(t *testing.T, m mode) {
		ts := startServer(t, m, quickly(), ok)
		const conns = 10
		for range conns {
			c := ts.dial()
			c.send(request)
			c.answered()
		}
		eventually(t, "all are idle", func() bool { return ts.Stats().Connections.Idle == conns })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		ts.Shutdown(ctx)
		<-ts.served
		if r := ts.balanced(); r.Cut != conns {
			t.Errorf("%d of %d are cut: %+v", r.Cut, conns, r)
		}
	})
}

// TestHalfRequestsAreCut: nor have those whose clients began a request and went
// on too slowly, which net/http closes when they are five seconds old.
func TestHalfRequestsAreCut(t *testing.T) {
	for _, half := range []string{"GET / HTTP/1.1\r\n", "\x16\x03\x01\x02\x00\x01"} {
		synctest.Test(t, func(t *testing.T) {
			v := startVirtual(t, Options{}, ok)
			c := v.dial()
			defer c.Close()
			c.send(half)
			time.Sleep(time.Minute)
			if err := v.Shutdown(t.Context()); err == nil {
				t.Error("Shutdown: nil")
			}
			<-v.served
			if r := v.Stats().Report; r.Cut != 1 {
				t.Errorf("%q: %+v", half, r)
			}
		})
	}
}

// TestPacer: what takes long, or comes late, delays nothing behind it.
func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, pace = 1000, 10 * time.Millisecond
		began := time.Now()
		turn := newPacer(pace)
		for i := range n {
			time.Sleep(turn.wait())
			if late := time.Since(began) - time.Duration(i)*pace; late < 0 {
				t.Fatalf("number %d came %v early", i, -late)
			}
			turn.next()
			time.Sleep(pace / 2) // it takes its time
			if i == n/2 {
				time.Sleep(n / 8 * pace) // the machine does something else
			}
		}
		if d, want := time.Since(began), (n-1)*pace+pace/2; d != want {
			t.Errorf("took %v, want %v", d, want)
		}
	})
}
