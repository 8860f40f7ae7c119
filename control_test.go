package usher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/gate"
	"github.com/seed-235859eb/usher/internal/memnet"
	"github.com/seed-235859eb/usher/internal/supervised"
)

// supervisedListener is one of a supervisor's: it notes what it is asked, and
// has late connections in its queue when it is to finish.
type supervisedListener struct {
	*memnet.Listener
	shut    gate.Outcome
	shutErr error
	looks   func(n int) (gate.Pending, error) // what the nth look finds; nil if there is no looking
	looked  []time.Time
	late    int
	asked   []string
	server  supervised.Server
	queue   chan net.Conn
	over    chan struct{}
}

func newSupervised(late int, shutErr error) *supervisedListener {
	return &supervisedListener{
		Listener: memnet.Listen(), shut: gate.Outcome{Mechanism: gate.Interface}, shutErr: shutErr, late: late,
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

func (l *supervisedListener) Shut() (gate.Outcome, error) {
	l.asked = append(l.asked, "shut")
	return l.shut, l.shutErr
}

func (l *supervisedListener) Handshakes() (gate.Pending, error) {
	l.looked = append(l.looked, time.Now())
	if l.looks == nil {
		return gate.Pending{}, errors.ErrUnsupported
	}
	return l.looks(len(l.looked))
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
// A gateResult is what a report says of the gate.
type gateResult struct {
	guarantee Guarantee
	gate      Gate
	reason    string
}

func TestSupervised(t *testing.T) {
	for _, tt := range []struct {
		name      string
		shutErr   error
		guarantee Guarantee
		gate      Gate
		took      time.Duration
	}{
		{"the last to leave", nil, GuaranteeAll, GateInterface, defaultHandshakeGrace},
		{"others go on", supervised.ErrShared, GuaranteeAll, GateSiblings, 0},
		{"somebody else's", supervised.ErrForeign, GuaranteeQueue, GateNone, 0},
		{"cannot shut", errors.ErrUnsupported, GuaranteeQueue, GateNone, 0},
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
				if (r.GateReason == "") != (tt.guarantee == GuaranteeAll) {
					t.Errorf("gate %s, reason %q", r.Gate, r.GateReason)
				}
				if r.Guarantee != tt.guarantee || r.Gate != tt.gate || r.AcceptedLate != 7 || r.Served != 7 {
					t.Errorf("report %+v, want guarantee %v and 7 served", r, tt.guarantee)
				}
				if n := l.server.Counters(); n.Requests != 7 || n.Accepted != 7 || n.InFlight != 0 || n.Connections != 0 {
					t.Errorf("counters %+v", n)
				}
			})
		})
	}
}

// TestGateEnds when two looks in succession find nothing under way, after
// HandshakeGrace at the latest.
func TestGateEnds(t *testing.T) {
	busy, open := gate.Pending{Handshakes: 1}, gate.Pending{Open: 2}
	for _, tt := range []struct {
		name string
		shut gate.Outcome
		find []gate.Pending // by look; the last goes on
		cost time.Duration  // of a look
		err  error
		want gateResult
		took time.Duration
	}{
		{"nothing under way", gate.Outcome{Mechanism: gate.Interface}, []gate.Pending{{}}, 0, nil,
			gateResult{GuaranteeAll, GateInterface, ""}, gate.NextLook},
		{"a handshake ends", gate.Outcome{Mechanism: gate.Interface}, []gate.Pending{busy, busy, {}}, 0, nil,
			gateResult{GuaranteeAll, GateInterface, ""}, 3 * gate.NextLook},
		{"one shows up late", gate.Outcome{Mechanism: gate.Interface}, []gate.Pending{{}, busy, {}}, 0, nil,
			gateResult{GuaranteeAll, GateInterface, ""}, 3 * gate.NextLook},
		{"one never ends", gate.Outcome{Mechanism: gate.Interface}, []gate.Pending{busy}, 0, nil,
			gateResult{GuaranteeAll, GateInterface, ""}, defaultHandshakeGrace},
		{"dear looks", gate.Outcome{Mechanism: gate.Interface}, []gate.Pending{busy, {}}, 20 * time.Millisecond, nil,
			gateResult{GuaranteeAll, GateInterface, ""}, 100 * time.Millisecond},
		{"no looks", gate.Outcome{Mechanism: gate.Interface}, nil, 0, syscall.EPERM,
			gateResult{GuaranteeAll, GateInterface, ""}, defaultHandshakeGrace},
		{"a sibling follows", gate.Outcome{Mechanism: gate.Interface}, []gate.Pending{open, {}}, 0, nil,
			gateResult{GuaranteeAll, GateInterface, ""}, 2 * gate.NextLook},
		{"a sibling goes on", gate.Outcome{Mechanism: gate.Interface}, []gate.Pending{open}, 0, nil,
			gateResult{GuaranteeQueue, GateNone, "2 other sockets of the SO_REUSEPORT group go on"}, defaultHandshakeGrace},
		{"the filter", gate.Outcome{Mechanism: gate.Filter, Refused: errors.New("interface: no")}, []gate.Pending{{}}, 0, nil,
			gateResult{GuaranteeAll, GateFilter, "interface: no"}, gate.NextLook},
		{"a name", gate.Outcome{Mechanism: gate.Name}, []gate.Pending{busy}, 0, nil,
			gateResult{GuaranteeAll, GateName, ""}, 0},
		{"no mechanism", gate.Outcome{Mechanism: gate.None, Refused: errors.Join(errors.New("interface: no"), errors.New("filter: nor"))}, []gate.Pending{{}}, 0, nil,
			gateResult{GuaranteeQueue, GateNone, "interface: no; filter: nor"}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newSupervised(0, nil)
				l.shut = tt.shut
				l.looks = func(n int) (gate.Pending, error) {
					time.Sleep(tt.cost)
					return append(tt.find, gate.Pending{})[min(n, max(len(tt.find), 1))-1], tt.err
				}
				logged := new(recorder)
				s := Wrap(&http.Server{Handler: http.HandlerFunc(ok)}, Options{Logger: logged.logger()})
				served := make(chan error, 1)
				go func() { served <- s.Run(context.Background(), l) }()
				synctest.Wait()
				began := time.Now()
				if err := s.Shutdown(context.Background()); err != nil {
					t.Error(err)
				}
				<-served
				if took := time.Since(began); took != tt.took {
					t.Errorf("the stop took %v, want %v", took, tt.took)
				}
				r := s.Stats().Report
				if got := (gateResult{r.Guarantee, r.Gate, r.GateReason}); got != tt.want {
					t.Errorf("%+v, want %+v", got, tt.want)
				}
				if want := fmt.Sprintf("guarantee=%s gate=%s gate_reason=%q", r.Guarantee, r.Gate, r.GateReason); !logged.contains(want) {
					t.Errorf("the log has no %s", want)
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
		l.server.EndDelay("test")
		synctest.Wait()
		if s.Phase() != PhaseDrain {
			t.Errorf("phase %v after EndDelay, want the drain", s.Phase())
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
