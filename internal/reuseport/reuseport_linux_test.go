package reuseport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary a child that serves the sockets it was
// passed; its value is their number.
const childEnv = "REUSEPORT_TEST_CHILD"

// noRaceWait spares a child the second that the race detector waits at exit.
const noRaceWait = "GORACE=atexit_sleep_ms=0"

func TestMain(m *testing.M) {
	if n, err := strconv.Atoi(os.Getenv(childEnv)); err == nil {
		if err := child(n); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child greets one connection on each of the descriptors from 3 on.
func child(n int) error {
	for i := range n {
		l, err := Listener(3 + i)
		if err != nil {
			return err
		}
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		if err := errors.Join(c.Close(), l.Close()); err != nil {
			return err
		}
	}
	return nil
}

func open(t *testing.T, network, address string, n int) *Group {
	t.Helper()
	g, err := Open(network, address, n)
	if err != nil {
		if address == "[::1]:0" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// dial makes n connections and returns how many of them arrived at each seat.
func dial(t *testing.T, g *Group, n int) []int {
	t.Helper()
	before := queued(t, g)
	for range n {
		c, err := net.Dial(g.Addr().Network(), g.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	// A dial returns when the client's end is established, which may be
	// before the other end is in the accept queue.
	for {
		arrived := queued(t, g)
		sum := 0
		for i := range arrived {
			arrived[i] -= before[i]
			sum += arrived[i]
		}
		if sum >= n {
			return arrived
		}
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
}

func queued(t *testing.T, g *Group) []int {
	t.Helper()
	counts := make([]int, len(g.FDs()))
	for i := range counts {
		n, err := g.Queued(i)
		if err != nil {
			t.Fatal(err)
		}
		counts[i] = n
	}
	return counts
}

// greeted makes one connection and waits until it is served.
func greeted(addr net.Addr) error {
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	return err
}

// greet serves l until it is closed.
func greet(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.Write([]byte("x"))
		c.Close()
	}
}

func hasFlag(t *testing.T, fd, cmd, flag int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), cmd, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags&flag != 0
}

func nonblocking(t *testing.T, fd int) bool { return hasFlag(t, fd, unix.F_GETFL, unix.O_NONBLOCK) }

// steered reports whether there is a program, and removes it.
func steered(t *testing.T, g *Group) bool {
	t.Helper()
	err := unix.SetsockoptInt(g.FD(0), unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0)
	if err != nil && err != unix.ENOENT {
		t.Fatal(err)
	}
	return err == nil
}

var addresses = []string{"127.0.0.1:0", "[::1]:0"}

// TestSeatOrder: the number of a seat is the one that the kernel has for it.
func TestSeatOrder(t *testing.T) {
	for _, address := range addresses {
		t.Run(address, func(t *testing.T) {
			g := open(t, "tcp", address, 4)
			for seat := range 4 {
				if err := g.Steer([]int{seat}); err != nil {
					t.Fatal(err)
				}
				if got := dial(t, g, 20); got[seat] != 20 {
					t.Errorf("steered to seat %d, arrived at %v", seat, got)
				}
			}
		})
	}
}

func TestSteer(t *testing.T) {
	for _, address := range addresses {
		for _, tt := range []struct {
			live, want []int
			program    bool
		}{
			{[]int{0}, []int{0}, true},
			{[]int{3}, []int{3}, true},
			{[]int{0, 2}, []int{0, 2}, true},
			{[]int{3, 1, 3, 3}, []int{1, 3}, true},
			{[]int{1, 2, 3}, []int{1, 2, 3}, true},
			{[]int{0, 1, 2, 3}, []int{0, 1, 2, 3}, false},
			{[]int{3, 2, 1, 0, 1}, []int{0, 1, 2, 3}, false},
			{[]int{}, []int{0, 1, 2, 3}, false},
			{nil, []int{0, 1, 2, 3}, false},
		} {
			t.Run(fmt.Sprint(address, tt.live), func(t *testing.T) {
				g := open(t, "tcp", address, 4)
				// In the way of what follows, whatever that is.
				if err := g.Steer([]int{0, 1}); err != nil {
					t.Fatal(err)
				}
				live := slices.Clone(tt.live)
				if err := g.Steer(live); err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(live, slices.Clone(tt.live)) {
					t.Errorf("Steer changed its argument to %v", live)
				}
				if len(live) == 0 {
					// Nor is it an error that there is no program.
					if err := g.Steer(live); err != nil {
						t.Fatal(err)
					}
				}
				got := dial(t, g, 100) // a seat misses out once in 10^12 runs
				for seat, n := range got {
					if want := slices.Contains(tt.want, seat); want != (n > 0) {
						t.Errorf("arrived %v, want seats %v only, and each", got, tt.want)
						break
					}
				}
				if got := steered(t, g); got != tt.program {
					t.Errorf("program attached: %v, want %v", got, tt.program)
				}
			})
		}
	}
}

// TestProgram runs the program without a kernel, on numbers instead of the
// random load, which the virtual machine lacks.
func TestProgram(t *testing.T) {
	for _, seats := range [][]int{{0}, {5}, {0, 1}, {1, 4, 7}, slices.Repeat([]int{300}, 300)} {
		prog := program(seats)
		if prog[0] != (bpf.LoadExtension{Num: bpf.ExtRand}) {
			t.Fatalf("program begins with %v", prog[0])
		}
		prog[0] = bpf.LoadAbsolute{Off: 0, Size: 4}
		vm, err := bpf.NewVM(prog)
		if err != nil {
			t.Fatal(err)
		}
		for random := range 3 * len(seats) {
			n, err := vm.Run([]byte{0, 0, byte(random >> 8), byte(random)})
			if err != nil {
				t.Fatal(err)
			}
			if want := seats[random%len(seats)]; n != want {
				t.Errorf("seats %v, random %d: %d, want %d", seats, random, n, want)
			}
		}
	}
}

func TestGrow(t *testing.T) {
	g := open(t, "tcp", "127.0.0.1:0", 1)
	for n := 2; n <= 4; n++ {
		before := g.FDs()
		if err := g.Grow(); err != nil {
			t.Fatal(err)
		}
		if after := g.FDs(); len(after) != n || !slices.Equal(after[:n-1], before) {
			t.Fatalf("descriptors %v became %v", before, after)
		}
		for seat := range n {
			if err := g.Steer([]int{seat}); err != nil {
				t.Fatal(err)
			}
			if got := dial(t, g, 10); got[seat] != 10 {
				t.Errorf("steered to seat %d of %d, arrived at %v", seat, n, got)
			}
		}
		if err := g.Steer(nil); err != nil {
			t.Fatal(err)
		}
		if got := dial(t, g, 100); slices.Contains(got, 0) {
			t.Errorf("arrived at %v, want some at each", got)
		}
	}
}

// TestShrink takes a seat away, and adds one again, while clients connect: no
// connection is refused or reset.
func TestShrink(t *testing.T) {
	g := open(t, "tcp", "127.0.0.1:0", 3)
	var workers sync.WaitGroup
	defer workers.Wait()
	serve := func(seat int) net.Listener {
		l, err := Listener(g.FD(seat))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		workers.Go(func() { greet(l) })
		return l
	}
	listeners := []net.Listener{serve(0), serve(1), serve(2)}
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()

	var clients sync.WaitGroup
	var stop atomic.Bool
	defer clients.Wait()
	defer stop.Store(true)
	var dials [4]atomic.Int64
	for i := range dials {
		addr := g.Addr()
		clients.Go(func() {
			for !stop.Load() {
				if err := greeted(addr); err != nil {
					t.Error(err)
				}
				dials[i].Add(1)
			}
		})
	}
	// round returns when each client has made n connections or more from
	// beginning to end. What began before is over by then.
	round := func(n int64) {
		t.Helper()
		for i := range dials {
			for until := dials[i].Load() + n + 1; dials[i].Load() < until; {
				if t.Context().Err() != nil {
					t.FailNow()
				}
				runtime.Gosched()
			}
		}
	}
	for range 3 {
		round(5)
		if err := g.Steer([]int{0, 1}); err != nil {
			t.Fatal(err)
		}
		round(1)
		if n, err := g.Queued(2); n != 0 || err != nil {
			t.Errorf("Queued = %d, %v, want 0", n, err)
		}
		listeners[2].Close()
		if err := g.Shrink(); err != nil {
			t.Fatal(err)
		}
		if n := len(g.FDs()); n != 2 {
			t.Errorf("%d sockets, want 2", n)
		}
		if g.FD(2) != -1 {
			t.Errorf("FD(2) = %d after Shrink", g.FD(2))
		}
		round(5)
		if err := g.Steer(nil); err != nil {
			t.Fatal(err)
		}
		round(5)
		if err := g.Grow(); err != nil {
			t.Fatal(err)
		}
		listeners[2] = serve(2)
	}
	round(1)
}

// TestStaleProgram: a program that names a socket that is gone leaves the
// choice to the hash.
func TestStaleProgram(t *testing.T) {
	g := open(t, "tcp", "127.0.0.1:0", 3)
	if err := g.Steer([]int{2}); err != nil {
		t.Fatal(err)
	}
	if err := g.Shrink(); err != nil {
		t.Fatal(err)
	}
	if got := dial(t, g, 100); slices.Contains(got, 0) {
		t.Errorf("arrived at %v, want some at each", got)
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		network, address string
		n, sockets       int
	}{
		{"tcp", "127.0.0.1:0", 3, 3},
		{"tcp", ":0", 3, 3},
		{"tcp4", "localhost:0", 2, 2},
		{"tcp6", "[::1]:0", 2, 2},
		{"tcp", "127.0.0.1:0", 1, 1},
		{"unix", filepath.Join(dir, "s"), 3, 1},
	} {
		t.Run(tt.network+tt.address, func(t *testing.T) {
			g, err := Open(tt.network, tt.address, tt.n)
			if err != nil && tt.network == "tcp6" {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if g.Network() != tt.network {
				t.Errorf("Network = %s", g.Network())
			}
			if want := tt.network == "unix"; g.Shared() != want {
				t.Errorf("Shared = %v, want %v", g.Shared(), want)
			}
			if n := len(g.FDs()); n != tt.sockets {
				t.Errorf("%d sockets, want %d", n, tt.sockets)
			}
			for seat := range tt.n {
				fd := g.FD(seat)
				if !hasFlag(t, fd, unix.F_GETFD, unix.FD_CLOEXEC) || !nonblocking(t, fd) {
					t.Errorf("seat %d: not close-on-exec and non-blocking", seat)
				}
				l, err := Listener(fd)
				if err != nil {
					t.Fatal(err)
				}
				if l.Addr().String() != g.Addr().String() {
					t.Errorf("seat %d has address %v, want %v", seat, l.Addr(), g.Addr())
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
			if err := greetedBy(g); err != nil {
				t.Error(err)
			}
			if tt.network == "unix" {
				if g.FD(0) != g.FD(2) {
					t.Errorf("FD = %d, %d for a shared socket", g.FD(0), g.FD(2))
				}
				if err := errors.Join(g.Grow(), g.Steer([]int{2}), g.Shrink()); err != nil {
					t.Errorf("Grow, Steer or Shrink of a shared socket: %v", err)
				}
				if len(g.FDs()) != 1 {
					t.Errorf("descriptors %v, want one", g.FDs())
				}
				if err := g.Close(); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(tt.address); err != nil {
					t.Errorf("Close removed the path: %v", err)
				}
			}
		})
	}
}

// greetedBy makes a connection with a listener on each socket of g.
func greetedBy(g *Group) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	for _, fd := range g.FDs() {
		l, err := Listener(fd)
		if err != nil {
			return err
		}
		defer l.Close()
		workers.Go(func() { greet(l) })
	}
	return greeted(g.Addr())
}

// TestOpenTwice: nobody shares an address by mistake.
func TestOpenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, tt := range []struct {
		name, network, address string
		first                  func(network, address string) (addr net.Addr, stop func() error, err error)
	}{
		{"Open", "tcp", "127.0.0.1:0", first},
		{"Open", "tcp", "[::1]:0", first},
		{"Open", "tcp", ":0", first},
		{"Open", "unix", path, first},
		{"net.Listen", "tcp", "127.0.0.1:0", func(network, address string) (net.Addr, func() error, error) {
			l, err := net.Listen(network, address)
			if err != nil {
				return nil, nil, err
			}
			return l.Addr(), l.Close, nil
		}},
	} {
		t.Run(tt.name+tt.address, func(t *testing.T) {
			addr, stop, err := tt.first(tt.network, tt.address)
			if err != nil && tt.address == "[::1]:0" {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			g, err := Open(tt.network, addr.String(), 2)
			if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), addr.String()) {
				t.Errorf("second Open: %v, want EADDRINUSE with the address", err)
			}
			if g != nil {
				t.Error("a Group comes with the error")
				g.Close()
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if tt.network == "unix" {
				return // The path stays.
			}
			if g, err = Open(tt.network, addr.String(), 2); err != nil {
				t.Fatalf("Open after Close: %v", err)
			}
			g.Close()
		})
	}
}

// first opens a group of which the server's end of a connection is left in
// TIME_WAIT.
func first(network, address string) (net.Addr, func() error, error) {
	g, err := Open(network, address, 2)
	if err != nil {
		return nil, nil, err
	}
	return g.Addr(), g.Close, greetedBy(g)
}

// TestProbe: no client gets through to the socket that probes the address, as
// it would be reset at once.
func TestProbe(t *testing.T) {
	g := open(t, "tcp", "127.0.0.1:0", 1)
	address := g.Addr().String()
	g.Close()

	var clients sync.WaitGroup
	var stop atomic.Bool
	for range 4 {
		clients.Go(func() {
			for !stop.Load() {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
				c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
				if err == nil {
					t.Error("connected")
					c.Close()
				}
				cancel()
			}
		})
	}
	for range 1000 {
		if err := probe("tcp", address); err != nil {
			t.Error(err)
			break
		}
	}
	stop.Store(true)
	clients.Wait()
}

// TestQueueOutlivesWorker: connections that wait when a worker goes away are
// served by the next.
func TestQueueOutlivesWorker(t *testing.T) {
	g := open(t, "tcp", "127.0.0.1:0", 2)
	l, err := Listener(g.FD(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Steer([]int{1}); err != nil {
		t.Fatal(err)
	}
	dial(t, g, 10)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = Listener(g.FD(1)); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 10 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		c.Close()
	}
}

// TestShrinkWhileOthersHold: a sibling that is about to give up the socket of a
// seat that was removed gets nobody new.
func TestShrinkWhileOthersHold(t *testing.T) {
	g := open(t, "tcp", "127.0.0.1:0", 3)
	if err := g.Steer([]int{0, 1}); err != nil {
		t.Fatal(err)
	}
	sibling, err := Listener(g.FD(2))
	if err != nil {
		t.Fatal(err)
	}
	defer sibling.Close()
	if err := errors.Join(g.Shrink(), g.Steer([]int{0, 1})); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		c, err := net.Dial("tcp", g.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	sibling.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Millisecond))
	if c, err := sibling.Accept(); err == nil {
		c.Close()
		t.Error("a connection came to the socket that was removed")
	}
}

// TestShutSeat: where the kernel lets this process attach the filter, a seat
// that is shut gets nobody, even if it is steered to.
func TestShutSeat(t *testing.T) {
	g := open(t, "tcp", "127.0.0.1:0", 2)
	if err := g.Steer([]int{1}); err != nil {
		t.Fatal(err)
	}
	if err := g.ShutSeat(1); errors.Is(err, unix.EPERM) {
		t.Log(err)
		dial(t, g, 1)
		return
	} else if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if c, err := new(net.Dialer).DialContext(ctx, "tcp", g.Addr().String()); err == nil {
		c.Close()
		t.Error("connected to a seat that is shut")
	}
	if err := g.Steer([]int{0}); err != nil {
		t.Fatal(err)
	}
	dial(t, g, 10)
}

func TestFromListener(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct{ network, address string }{
		{"tcp", "127.0.0.1:0"}, // Multipath TCP, where the system has it
		{"tcp", "[::1]:0"},
		{"unix", filepath.Join(dir, "s")},
	} {
		t.Run(tt.network+tt.address, func(t *testing.T) {
			l, err := net.Listen(tt.network, tt.address)
			if err != nil && tt.address == "[::1]:0" {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			addr := l.Addr()
			g, err := FromListener(l)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept of the old listener: %v, want net.ErrClosed", err)
			}
			if !g.Shared() || g.Network() != tt.network || g.Addr().String() != addr.String() {
				t.Errorf("Shared = %v, Network = %s, Addr = %v, want %v", g.Shared(), g.Network(), g.Addr(), addr)
			}
			if !hasFlag(t, g.FD(0), unix.F_GETFD, unix.FD_CLOEXEC) || !nonblocking(t, g.FD(0)) {
				t.Error("not close-on-exec and non-blocking")
			}
			if err := greetedBy(g); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("hidden", func(t *testing.T) {
		for _, inner := range []net.Listener{listenPlain(t, "tcp", "127.0.0.1:0"), listenPlain(t, "unix", filepath.Join(dir, "hidden"))} {
			rc := inner.(syscall.Conn)
			var worker sync.WaitGroup
			worker.Go(func() { greet(inner) })
			defer worker.Wait()
			defer inner.Close()
			type embeds struct{ net.Listener }
			type forwards struct {
				net.Listener
				syscall.Conn
			}
			outer := []net.Listener{embeds{inner}}
			if inner.Addr().Network() == "unix" {
				outer = append(outer, forwards{inner, rc})
			}
			for _, l := range outer {
				_, err := FromListener(l)
				if err == nil || !strings.Contains(err.Error(), reflect.TypeOf(l).String()) {
					t.Errorf("%T: %v, want an error that names the type", l, err)
				}
				// On error the listener stays open.
				if err := greeted(inner.Addr()); err != nil {
					t.Errorf("%T: %v", l, err)
				}
			}
		}
	})
}

func listenPlain(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// rawDup returns a blocking descriptor of its own for a listener, a connection
// or a pipe's end, one that every child inherits.
func rawDup(t *testing.T, c any) int {
	t.Helper()
	rc, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	rc.Control(func(old uintptr) { fd, err = unix.Dup(int(old)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestFromFDs(t *testing.T) {
	old := open(t, "tcp", "127.0.0.1:0", 3)
	var fds []int
	for _, fd := range old.FDs() {
		fd, err := unix.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	g, err := FromFDs("tcp", fds, false)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(g.FDs(), fds) || g.Shared() || g.Network() != "tcp" || g.Addr().String() != old.Addr().String() {
		t.Errorf("group of %v on %s %v, shared %v", g.FDs(), g.Network(), g.Addr(), g.Shared())
	}
	for _, fd := range g.FDs() {
		if !hasFlag(t, fd, unix.F_GETFD, unix.FD_CLOEXEC) || !nonblocking(t, fd) {
			t.Errorf("descriptor %d: not close-on-exec and non-blocking", fd)
		}
	}
	if err := g.Grow(); err != nil {
		t.Fatal(err)
	}
	for seat := range 4 {
		if err := g.Steer([]int{seat}); err != nil {
			t.Fatal(err)
		}
		if got := dial(t, g, 10); got[seat] != 10 {
			t.Errorf("steered to seat %d, arrived at %v", seat, got)
		}
	}
}

func TestFromFDsRefuses(t *testing.T) {
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	plain := listenPlain(t, "tcp", "127.0.0.1:0")
	unixListener := listenPlain(t, "unix", filepath.Join(t.TempDir(), "s"))
	packet, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packet.Close()
	conn, err := net.Dial("tcp", plain.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	one, other := open(t, "tcp", "127.0.0.1:0", 2), open(t, "tcp", "127.0.0.1:0", 1)
	closed, err := unix.Dup(one.FD(0))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		network string
		fds     []int
		shared  bool
		want    string
	}{
		{"pipe", "tcp", []int{rawDup(t, pipe)}, true, "socket operation on non-socket"},
		{"connection", "tcp", []int{rawDup(t, conn)}, true, "not listening"},
		{"datagram", "tcp", []int{rawDup(t, packet)}, true, "not a stream socket"},
		{"closed", "tcp", []int{closed}, true, "bad file descriptor"},
		{"negative", "tcp", []int{-1}, true, "bad file descriptor"},
		{"no SO_REUSEPORT", "tcp", []int{rawDup(t, plain)}, false, "without SO_REUSEPORT"},
		{"unix as tcp", "tcp", []int{rawDup(t, unixListener)}, true, "network is unix, not tcp"},
		{"tcp as unix", "unix", []int{rawDup(t, plain)}, true, "network is tcp, not unix"},
		{"twice", "tcp", []int{one.FD(0), one.FD(0)}, false, "given twice"},
		{"two addresses", "tcp", []int{one.FD(0), other.FD(0)}, false, "address is"},
		{"second is bad", "tcp", []int{one.FD(0), closed}, false, "bad file descriptor"},
		{"none", "tcp", nil, false, "0 descriptors"},
		{"two to share", "tcp", one.FDs(), true, "2 descriptors"},
		{"network", "udp", one.FDs(), false, "unknown network udp"},
	}
	unix.Close(closed) // not earlier, lest its number be taken
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g, err := FromFDs(tt.network, tt.fds, tt.shared)
			if err == nil || g != nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("FromFDs = %v, %v, want an error with %q", g, err, tt.want)
			}
			if name := fmt.Sprintf("descriptor %d: ", slices.Concat(tt.fds, []int{-1})[max(0, len(tt.fds)-1)]); !strings.Contains(err.Error(), name) &&
				!strings.Contains(tt.want, "descriptors") && tt.network != "udp" {
				t.Errorf("%v: want %q in it", err, name)
			}
			for _, fd := range tt.fds {
				if fd != closed && fd >= 0 {
					hasFlag(t, fd, unix.F_GETFD, 0) // still open
				}
			}
		})
	}
}

func TestBadInput(t *testing.T) {
	g := open(t, "tcp", "127.0.0.1:0", 2)
	closed := open(t, "tcp", "127.0.0.1:0", 2)
	closed.Close()
	alone := open(t, "tcp", "127.0.0.1:0", 1)
	shared, err := FromListener(listenPlain(t, "tcp", "127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	second := func(_ any, err error) error { return err }
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"no sockets", second(Open("tcp", "127.0.0.1:0", 0)), "0"},
		{"fewer", second(Open("tcp", "127.0.0.1:0", -3)), "-3"},
		{"network", second(Open("udp", "127.0.0.1:0", 1)), "udp"},
		{"address", second(Open("tcp", "127.0.0.1", 1)), "127.0.0.1"},
		{"foreign address", second(Open("tcp", "192.0.2.1:0", 2)), "192.0.2.1"},
		{"path", second(Open("unix", filepath.Join(t.TempDir(), "no", "s"), 1)), "no/s"},
		{"seat too high", g.Steer([]int{0, 2}), "seat 2"},
		{"no socket", steer(-1, []int{0}, false), "attach"},
		{"no socket", steer(-1, []int{0}, true), "detach"},
		{"seat negative", g.Steer([]int{-1, 0}), "seat -1"},
		{"seat too high, one socket", alone.Steer([]int{1}), "seat 1"},
		{"Queued", second(g.Queued(2)), "seat 2"},
		{"Queued, shared", second(shared.Queued(-1)), "seat -1"},
		{"Shut", g.ShutSeat(-1), "seat -1"},
		{"last socket", alone.Shrink(), "1"},
		{"Steer, closed", closed.Steer([]int{0}), "seat 0"},
		{"Queued, closed", second(closed.Queued(0)), "seat 0"},
		{"Grow, closed", closed.Grow(), "closed"},
		{"Shrink, closed", closed.Shrink(), "0"},
		{"Listener", second(Listener(-1)), "-1"},
	} {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error with %q", tt.name, tt.err, tt.want)
		}
	}
	for _, seat := range []int{-1, 2} {
		if fd := g.FD(seat); fd != -1 {
			t.Errorf("FD(%d) = %d, want -1", seat, fd)
		}
	}
	if fd := shared.FD(-1); fd != -1 {
		t.Errorf("FD(-1) of a shared socket = %d, want -1", fd)
	}
}

// TestNonblock: a cleared O_NONBLOCK makes Accept block a thread in all
// processes with the socket, and Close of their listeners wait for it.
func TestNonblock(t *testing.T) {
	for _, tt := range []struct{ network, address string }{
		{"tcp", "127.0.0.1:0"},
		{"tcp", "[::1]:0"},
		{"unix", filepath.Join(t.TempDir(), "s")},
	} {
		t.Run("Listener"+tt.network+tt.address, func(t *testing.T) {
			g := open(t, tt.network, tt.address, 2)
			for _, fd := range g.FDs() {
				done := make(chan error, 1)
				go func() {
					for range 300 {
						l, err := Listener(fd)
						if err != nil {
							done <- err
							return
						}
						l.Close()
					}
					done <- nil
				}()
				for running := true; running; {
					select {
					case err := <-done:
						if err != nil {
							t.Fatal(err)
						}
						running = false
					default:
					}
					if !nonblocking(t, fd) {
						t.Fatal("O_NONBLOCK was cleared")
					}
				}
			}
		})
	}

	t.Run("ForkExec", func(t *testing.T) {
		g := open(t, "tcp", "127.0.0.1:0", 3)
		files := []uintptr{0, 1, 2}
		for _, fd := range g.FDs() {
			files = append(files, uintptr(fd))
		}
		pid, err := syscall.ForkExec("/proc/self/exe", []string{"child"}, &syscall.ProcAttr{
			Env:   []string{childEnv + "=3", noRaceWait},
			Files: files,
		})
		if err != nil {
			t.Fatal(err)
		}
		for seat := range 3 {
			if err := g.Steer([]int{seat}); err != nil {
				t.Fatal(err)
			}
			if err := greeted(g.Addr()); err != nil {
				t.Error(err)
			}
			for _, fd := range g.FDs() {
				if !nonblocking(t, fd) {
					t.Error("O_NONBLOCK was cleared")
				}
			}
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			t.Fatal(err)
		}
		if state, err := p.Wait(); err != nil || !state.Success() {
			t.Errorf("child: %v, %v", state, err)
		}
		for _, fd := range g.FDs() {
			if !nonblocking(t, fd) {
				t.Error("O_NONBLOCK was cleared")
			}
		}
	})

	// What this package avoids. If it begins to fail, package os no longer
	// clears the flag.
	t.Run("ExtraFiles", func(t *testing.T) {
		l := listenPlain(t, "tcp", "127.0.0.1:0")
		fd := rawDup(t, l)
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if !nonblocking(t, fd) {
			t.Fatal("cleared before the start")
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{childEnv + "=0", noRaceWait}
		cmd.ExtraFiles = []*os.File{f}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if nonblocking(t, fd) {
			t.Error("O_NONBLOCK is still set")
		}
		unix.SetNonblock(fd, true)
	})
}

// TestCloseWhileAccept: with O_NONBLOCK kept, Close of one process's listener
// does not hang although another was made from the same socket.
func TestCloseWhileAccept(t *testing.T) {
	g := open(t, "tcp", "127.0.0.1:0", 1)
	var ls []net.Listener
	var accepting sync.WaitGroup
	for range 2 {
		l, err := Listener(g.FD(0))
		if err != nil {
			t.Fatal(err)
		}
		ls = append(ls, l)
		accepting.Go(func() {
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v, want net.ErrClosed", err)
			}
		})
	}
	for _, l := range ls {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	accepting.Wait()
}

// TestClose: nothing leaks, and nothing is closed that others have by now.
func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	cycle := func() {
		t.Helper()
		for _, network := range []string{"tcp", "unix"} {
			address := map[string]string{"tcp": "127.0.0.1:0", "unix": path}[network]
			g, err := Open(network, address, 3)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(g.Grow(), g.Steer([]int{1}), g.Shrink(), g.Steer(nil)); err != nil {
				t.Fatal(err)
			}
			if g, err := Open(network, g.Addr().String(), 2); err == nil { // fails half-way
				t.Error("opened twice")
				g.Close()
			}
			l, err := Listener(g.FD(0))
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if g, err := FromFDs("tcp6x", g.FDs(), true); err == nil {
				t.Error("adopted")
				g.Close()
			}
			packet, err := net.Listen("unixpacket", path+"p")
			if err != nil {
				t.Fatal(err)
			}
			if g, err := FromListener(packet); err == nil {
				t.Error("took a listener of packets")
				g.Close()
			}
			packet.Close()
			openTooMany(t)
			fds := g.FDs()
			if err := g.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			// The numbers are others' now. A second Close must not close them.
			var taken []int
			for _, fd := range fds {
				if err := unix.Dup3(2, fd, unix.O_CLOEXEC); err != nil {
					t.Fatal(err)
				}
				taken = append(taken, fd)
			}
			if err := g.Close(); err != nil {
				t.Errorf("second Close: %v", err)
			}
			for _, fd := range taken {
				if err := unix.Close(fd); err != nil {
					t.Errorf("second Close closed descriptor %d again", fd)
				}
			}
			if g.FD(0) != -1 || len(g.FDs()) != 0 {
				t.Errorf("descriptors %v after Close", g.FDs())
			}
			os.Remove(path)
		}
	}
	cycle() // The runtime and package net open some for good, once.
	before := descriptors(t)
	for range 3 {
		cycle()
	}
	if after := descriptors(t); !slices.Equal(after, before) {
		t.Errorf("descriptors were %v, are %v", before, after)
	}
}

// openTooMany runs out of descriptors half-way.
func openTooMany(t *testing.T) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	low := limit
	low.Cur = 50
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	g, err := Open("tcp", "127.0.0.1:0", 60)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, syscall.EMFILE) || g != nil {
		t.Errorf("Open = %v, %v, want EMFILE", g, err)
	}
	if after := descriptors(t); !slices.Equal(after, before) {
		t.Errorf("descriptors were %v, are %v", before, after)
	}
}

func descriptors(t *testing.T) []string {
	t.Helper()
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}
