package usher

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/gate"
	"golang.org/x/sys/unix"
)

// best mechanism that the kernel lets this process use on a plain TCP socket,
// found out without package gate: it depends on who runs the test.
func bestGate(t *testing.T) Gate {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, 0x7ffffffe) == nil {
		return GateInterface
	}
	pass := []unix.SockFilter{{Code: unix.BPF_RET, K: 1 << 31}}
	if unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &pass[0]}) == nil {
		return GateFilter
	}
	return GateNone
}

func onSocket(t *testing.T, l net.Listener, f func(fd int) error) {
	t.Helper()
	rc, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var opErr error
	err = rc.Control(func(fd uintptr) { opErr = f(int(fd)) })
	if err := errors.Join(err, opErr); err != nil {
		t.Fatal(err)
	}
}

// TestGuarantees has the rows of the table in the package documentation that
// this system can show, whoever runs it.
func TestGuarantees(t *testing.T) {
	foreign := func(multipath bool) func() (net.Listener, error) {
		return func() (net.Listener, error) {
			var lc net.ListenConfig
			lc.SetMultipathTCP(multipath)
			return lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		}
	}
	plain, multipath := bestGate(t), GateNone
	if plain == GateInterface && gate.Multipath() {
		multipath = GateInterface
	}
	type promise struct {
		guarantee Guarantee
		gate      Gate
	}
	of := func(g Gate) promise {
		if g == GateNone {
			return promise{GuaranteeQueue, GateNone}
		}
		return promise{GuaranteeAll, g}
	}
	for _, tt := range []struct {
		name      string
		listen    func() (net.Listener, error)
		exclusive bool
		want      promise
	}{
		{"usher.Listen", func() (net.Listener, error) { return Listen("tcp", "127.0.0.1:0") }, false, of(plain)},
		{"unix socket", func() (net.Listener, error) { return Listen("unix", t.TempDir()+"/s") }, false, promise{GuaranteeAll, GateName}},
		{"net.Listen", foreign(false), false, promise{GuaranteeQueue, GateNone}},
		{"net.Listen, Exclusive", foreign(false), true, of(plain)},
		{"Multipath TCP", foreign(true), false, promise{GuaranteeQueue, GateNone}},
		{"Multipath TCP, Exclusive", foreign(true), true, of(multipath)},
		{"bound to a device, Exclusive", func() (net.Listener, error) {
			lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
				return rc.Control(func(fd uintptr) { unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo") })
			}}
			lc.SetMultipathTCP(false)
			return lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		}, true, promise{gate: "?"}},
		{"hidden", func() (net.Listener, error) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			return struct{ net.Listener }{l}, err
		}, true, promise{GuaranteeNone, GateNone}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inner, err := tt.listen()
			if err != nil {
				t.Fatal(err)
			}
			logged := new(recorder)
			opts := quickly()
			opts.Listener.Exclusive = tt.exclusive
			opts.Logger = logged.logger()
			ts := &testServer{t: t, mode: h1, http: newHTTPServer(h1, http.HandlerFunc(ok)), net: inner.Addr().Network(), addr: inner.Addr().String(), served: make(chan error, 1)}
			ts.Server = Wrap(ts.http, opts)
			ts.serve(inner)
			ts.awaitPhase(PhaseServing)
			c := ts.dial()
			c.send(request)
			c.answered()
			c.Close()
			r := ts.clean(ts.shutdown())
			got := promise{r.Guarantee, r.Gate}
			if tt.want.gate == "?" {
				// By CAP_NET_RAW, else by CAP_NET_ADMIN, else not at all.
				if r.Gate == GateInterface {
					return
				}
				tt.want = of(r.Gate)
				if !slices.Contains([]Gate{GateFilter, GateNone}, r.Gate) || r.GateReason == "" {
					t.Errorf("%+v, reason %q", got, r.GateReason)
				}
			}
			if got != tt.want {
				t.Errorf("%+v (%s), want %+v", got, r.GateReason, tt.want)
			}
			if best := r.Gate == GateInterface || r.Gate == GateName; best != (r.GateReason == "") {
				t.Errorf("gate %s, reason %q", r.Gate, r.GateReason)
			}
			if r.GateReason != "" && !logged.contains(r.GateReason) {
				t.Errorf("the log does not tell the reason: %s", r.GateReason)
			}
			if _, err := net.Dial(ts.net, ts.addr); err == nil {
				t.Error("connect succeeded after the stop")
			}
		})
	}
}

// TestListenKeepsMultipath where the gate works on it.
func TestListenKeepsMultipath(t *testing.T) {
	l, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	onSocket(t, l, func(fd int) error {
		proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if multipath := proto == unix.IPPROTO_MPTCP; multipath != gate.Multipath() {
			t.Errorf("Multipath TCP: %v, the gate works on it: %v", multipath, gate.Multipath())
		}
		return err
	})
}

// TestMultipathClients: nothing in a stop is different for connections that
// speak Multipath TCP.
func TestMultipathClients(t *testing.T) {
	if !gate.Multipath() {
		t.Skip("no gate for Multipath TCP here")
	}
	opts := quickly()
	opts.Shutdown.IdleGrace = 20 * time.Second
	ts := startServer(t, h1, opts, ok)
	var d net.Dialer
	d.SetMultipathTCP(true)
	var conns []*rawConn
	for range 3 {
		c, err := d.Dial("tcp", ts.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		if on, err := c.(*net.TCPConn).MultipathTCP(); err != nil || !on {
			t.Skipf("the connection fell back to TCP: %v", err)
		}
		conns = append(conns, newRawConn(t, c))
	}
	for _, c := range conns[:2] { // the third stays silent so far
		c.send(request)
		c.answered()
	}
	eventually(t, "all are accepted", func() bool { return ts.Stats().Accepted == 3 })
	stopped := ts.shutdown()
	ts.awaitPhase(PhaseDrain)
	for _, c := range conns {
		c.send(request)
		if !c.answered().Close {
			t.Error("the response does not say close")
		}
		c.ended()
	}
	if r := ts.clean(stopped); r.Served != 3 {
		t.Errorf("report %+v", r)
	}
}

// TestHandshakeUnderWay: a client whose handshake was under way when the stop
// began is served, however late it sends; a newcomer is refused; and the gate is
// over as soon as nobody is under way.
func TestHandshakeUnderWay(t *testing.T) {
	if bestGate(t) == GateNone {
		t.Skip("the kernel has no gate for this process")
	}
	inner, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// With it a handshake is under way, for the kernel, until its client has
	// sent something: the ACK that ends it comes as late as we like.
	onSocket(t, inner, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 60) })
	onSocket(t, inner, func(int) error {
		rc, _ := inner.(syscall.Conn).SyscallConn()
		_, err := gate.Handshakes(rc)
		if err != nil {
			t.Skip(err)
		}
		return nil
	})
	opts := quickly()
	opts.Listener.HandshakeGrace = 20 * time.Second
	ts := &testServer{t: t, mode: h1, http: newHTTPServer(h1, http.HandlerFunc(ok)), net: "tcp", addr: inner.Addr().String(), served: make(chan error, 1)}
	ts.Server = Wrap(ts.http, opts)
	ts.serve(inner)
	ts.awaitPhase(PhaseServing)
	late := ts.dial()
	began := time.Now()
	stopped := ts.shutdown()
	early := 0 // came before the gate was shut
	newcomer := func() error {
		c, err := net.Dial("tcp", ts.addr)
		if err == nil {
			early++
			c.Close()
		}
		return err
	}
	if bestGate(t) == GateInterface {
		eventually(t, "newcomers are refused", func() bool { return errors.Is(newcomer(), unix.ECONNREFUSED) })
		var took []time.Duration
		for range 20 {
			asked := time.Now()
			if err := newcomer(); !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatalf("a newcomer: %v", err)
			}
			took = append(took, time.Since(asked))
		}
		slices.Sort(took)
		t.Logf("a newcomer is refused within %v (median of %d), %v at most", took[len(took)/2], len(took), took[len(took)-1])
	}
	time.Sleep(100 * time.Millisecond) // how late the ACK is, not a wait for something
	if p := ts.Phase(); p != PhaseGate {
		t.Errorf("phase %v with a handshake under way, want the gate", p)
	}
	if n := ts.Stats().Accepted; n > uint64(early) {
		t.Errorf("%d connections accepted before the handshake's end", n)
	}
	late.send(request)
	if !late.answered().Close {
		t.Error("the response does not say close")
	}
	late.ended()
	// Of the early ones, some may have come, or have come and gone, before the stop.
	if r := ts.clean(stopped); r.Open+r.AcceptedLate < 1 || r.Open+r.AcceptedLate > 1+early || r.Served != 1 || r.Guarantee != GuaranteeAll {
		t.Errorf("report %+v", r)
	}
	if took := time.Since(began); took >= opts.Listener.HandshakeGrace {
		t.Errorf("the stop took %v: it waited for HandshakeGrace", took)
	}
}

// BenchmarkStop is a stop of a server without a connection.
func BenchmarkStop(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		l, err := Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		s := Wrap(&http.Server{Handler: http.HandlerFunc(ok)}, Options{Logger: silent})
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		for s.Phase() != PhaseServing {
			time.Sleep(time.Millisecond)
		}
		b.StartTimer()
		if err := s.Shutdown(context.Background()); err != nil {
			b.Fatal(err)
		}
		<-served
	}
}
