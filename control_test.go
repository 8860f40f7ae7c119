package usher

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/memnet"
	"github.com/seed-235859eb/usher/internal/supervised"
)

// supervisedListener is one of a supervisor's: it notes what it is asked, and
// has late connections in its queue when it is to finish.
type supervisedListener struct {
	*memnet.Listener
	shutErr error
	late    int
	asked   []string
	server  supervised.Server
	queue   chan net.Conn
	over    chan struct{}
}

func newSupervised(late int, shutErr error) *supervisedListener {
	return &supervisedListener{
		Listener: memnet.Listen(), shutErr: shutErr, late: late,
		queue: make(chan net.Conn), over: make(chan struct{}),
	}
}

func (l *supervisedListener) Accept() (net.Conn, error) {
	type result struct {
		c   net.Conn
		err error
	}
	inner := make(chan result, 1)
	go func() { c, err := l.Listener.Accept(); inner <- result{c, err} }()
	select {
	case r := <-inner:
		return r.c, r.err
	case c := <-l.queue:
		return c, nil
	case <-l.over:
		return nil, net.ErrClosed
	}
}

func (l *supervisedListener) Served(s supervised.Server) {
	l.asked = append(l.asked, "served")
	l.server = s
}

func (l *supervisedListener) Shut() error {
	l.asked = append(l.asked, "shut")
	return l.shutErr
}

func (l *supervisedListener) Finish() {
	l.asked = append(l.asked, "finish")
	go func() {
		for range l.late {
			client, server := memnet.Pipe()
			go func() {
				client.Write([]byte(request))
				client.Read(make([]byte, 1000))
				client.Close()
			}()
			l.queue <- server
		}
		close(l.over)
	}()
}

func (l *supervisedListener) Queued() (int, error) { return l.late, nil }

// TestSupervised: where a supervisor has the sockets, it says how to leave, and
// all that it hands over is served.
func TestSupervised(t *testing.T) {
	for _, tt := range []struct {
		name      string
		shutErr   error
		guarantee Guarantee
		took      time.Duration
	}{
		{"the last to leave", nil, GuaranteeAll, defaultHandshakeGrace},
		{"others go on", supervised.ErrShared, GuaranteeAll, 0},
		{"cannot shut", errors.ErrUnsupported, GuaranteeQueue, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newSupervised(7, tt.shutErr)
				s := Wrap(&http.Server{Handler: http.HandlerFunc(ok)}, Options{Logger: silent})
				served := make(chan error, 1)
				go func() { served <- s.Run(context.Background(), l) }()
				synctest.Wait()
				if l.server == nil {
					t.Fatal("the listener was not told who serves")
				}
				if n := s.Stats().AcceptQueue; n != 7 {
					t.Errorf("AcceptQueue = %d, want what the listener says", n)
				}
				began := time.Now()
				l.server.Stop("test", false)
				if err := <-served; err != nil {
					t.Error(err)
				}
				<-l.server.Done()
				if took := time.Since(began); took != tt.took {
					t.Errorf("the stop took %v, want %v", took, tt.took)
				}
				if want := []string{"served", "shut", "finish"}; !slices.Equal(l.asked, want) {
					t.Errorf("asked for %v, want %v", l.asked, want)
				}
				r := s.Stats().Report
				if r.Guarantee != tt.guarantee || r.Queued != 7 || r.Served != 7 {
					t.Errorf("report %+v, want guarantee %v and 7 served", r, tt.guarantee)
				}
				if n := l.server.Counters(); n.Requests != 7 || n.Accepted != 7 || n.InFlight != 0 || n.Connections != 0 {
					t.Errorf("counters %+v", n)
				}
			})
		})
	}
}

// TestSupervisorHurries: as signals do in a program of its own.
func TestSupervisorHurries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newSupervised(0, supervised.ErrShared)
		forever := make(chan struct{})
		h := func(w http.ResponseWriter, r *http.Request) { <-forever }
		s := Wrap(&http.Server{Handler: http.HandlerFunc(h)},
			Options{Logger: silent, Shutdown: ShutdownOptions{Delay: time.Hour, GracePeriod: 2 * time.Hour}})
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		synctest.Wait()
		c, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte(request))
		synctest.Wait()
		if n := l.server.Counters(); n.Requests != 1 || n.InFlight != 1 || n.Connections != 1 {
			t.Errorf("counters %+v", n)
		}
		began := time.Now()
		l.server.Stop("test", false)
		if s.Phase() != PhaseLameDuck {
			t.Errorf("phase %v", s.Phase())
		}
		l.server.Hurry("test")
		synctest.Wait()
		if s.Phase() != PhaseDrain {
			t.Errorf("phase %v after Hurry, want the drain", s.Phase())
		}
		l.server.EndNow("test")
		if err := <-served; err == nil {
			t.Error("no error though a request was cut")
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("took %v", took)
		}
		close(forever)
		synctest.Wait()
	})
}
