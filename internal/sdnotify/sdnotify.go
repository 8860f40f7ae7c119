// Package sdnotify speaks the protocols by which a service manager such as
// systemd and a process know of each other: the process tells its state
// (sd_notify), is watched (sd_watchdog_enabled) and is handed listening sockets
// (sd_listen_fds).
//
// All three are environment variables, and environment variables are
// inherited: [Scrub] keeps them from the children.
package sdnotify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

const (
	// sendTimeout bounds a send. A service manager that does not read must not
	// stop the process, which has connections to serve.
	sendTimeout = time.Second

	// maxStatus bounds the text of a status, in bytes. systemd ignores a
	// datagram of more than 4096 bytes altogether: a long status would take
	// the READY=1 next to it along.
	maxStatus = 2048
)

// A Notifier sends the state of this process to the service manager. [New]
// makes it; the nil Notifier does nothing, so that callers need not ask
// whether there is a service manager.
//
// A status is one line for the administrator. It replaces the one before, and
// an empty one removes it. Control characters in it, newlines above all, become
// spaces: each line of a datagram is an assignment of its own. Bytes that are
// not UTF-8, and what exceeds 2048 bytes, are left out.
//
// All methods may be called from many goroutines at once, and take about a
// second at most. Their errors name the socket; one of a service manager that
// does not read is [os.ErrDeadlineExceeded], one after Close [net.ErrClosed].
// The state sent is still the same then, so going on without is always safe.
type Notifier struct {
	addr *net.UnixAddr

	// turn holds a token while nobody sends. Not left to the lock inside conn,
	// as one waits there without a deadline.
	turn chan struct{}

	mu     sync.Mutex // Protects following.
	conn   *net.UnixConn
	closed bool
}

// New returns a Notifier for the service manager's socket in NOTIFY_SOCKET, an
// absolute path or, on Linux, "@" and an abstract name. It is nil, without an
// error, if the variable is unset or empty. It connects: if nobody listens,
// that is an error here already, and a process that gives up its right to the
// path later goes on sending.
//
// Where the system has no such sockets the error wraps [errors.ErrUnsupported].
func New(getenv func(string) string) (*Notifier, error) {
	name := getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil, nil
	}
	fail := func(err error) (*Notifier, error) {
		return nil, fmt.Errorf("NOTIFY_SOCKET=%q: %w", name, err)
	}
	switch {
	case slices.Contains([]string{"windows", "plan9", "js", "wasip1"}, runtime.GOOS):
		return fail(errors.ErrUnsupported) // Sockets of the unix family, if any, are streams.
	case len(name) < 2 || name[0] != '/' && name[0] != '@' || strings.Contains(name, "\x00"):
		// The vsock: addresses are for virtual machines.
		return fail(errors.New("neither an absolute path nor an abstract name"))
	case name[0] == '@' && runtime.GOOS != "linux":
		// It would be a file of that name in the working directory.
		return fail(fmt.Errorf("abstract name: %w", errors.ErrUnsupported))
	}
	n := &Notifier{
		addr: &net.UnixAddr{Name: name, Net: "unixgram"},
		turn: make(chan struct{}, 1),
	}
	conn, err := n.dial()
	if err != nil {
		return fail(cause(err))
	}
	n.conn = conn
	n.turn <- struct{}{}
	return n, nil
}

// Ready tells that the service has started, or finished reloading.
func (n *Notifier) Ready(status string) error {
	return n.send("READY=1\n" + statusLine(status))
}

// Reloading tells that the service reloads its configuration. [Notifier.Ready]
// must follow.
func (n *Notifier) Reloading(status string) error {
	if n == nil {
		return nil
	}
	// The time goes with RELOADING=1 or not at all: for a unit of
	// Type=notify-reload systemd takes a message without it for a reload other
	// than the one it asked for, and waits on.
	clock, err := monotonicLine()
	if err != nil {
		return n.fail(err)
	}
	return n.send("RELOADING=1\n" + clock + statusLine(status))
}

// Stopping tells that the service has begun to shut down.
func (n *Notifier) Stopping(status string) error {
	return n.send("STOPPING=1\n" + statusLine(status))
}

// Status sends a status and leaves the state as it is.
func (n *Notifier) Status(status string) error { return n.send(statusLine(status)) }

// Watchdog tells that the service is alive, which it must do more often than
// every [WatchdogInterval].
func (n *Notifier) Watchdog() error { return n.send("WATCHDOG=1") }

// Close closes the socket; a send under way fails. Closing again does nothing
// and returns nil.
func (n *Notifier) Close() error {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	closed, conn := n.closed, n.conn
	n.closed = true
	n.mu.Unlock()
	if closed {
		return nil
	}
	return n.fail(conn.Close())
}

func (n *Notifier) send(state string) error {
	if n == nil {
		return nil
	}
	deadline := time.Now().Add(sendTimeout)
	timer := time.NewTimer(sendTimeout)
	defer timer.Stop()
	select {
	case <-n.turn:
		defer func() { n.turn <- struct{}{} }()
	case <-timer.C:
		return n.fail(os.ErrDeadlineExceeded)
	}
	n.mu.Lock()
	conn := n.conn
	n.mu.Unlock()
	err := write(conn, state, deadline)
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		// The socket stays connected to one receiver, and the name may have a
		// new one.
		if conn, err = n.redial(); err == nil {
			err = write(conn, state, deadline)
		}
	}
	return n.fail(err)
}

func write(conn *net.UnixConn, state string, deadline time.Time) error {
	if err := conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	_, err := conn.Write([]byte(state))
	return err
}

// redial replaces the connection. The caller has the turn.
func (n *Notifier) redial() (*net.UnixConn, error) {
	conn, err := n.dial()
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	n.conn.Close() // It has failed already.
	n.conn = conn
	return conn, nil
}

// dial connects. Only a connected socket tells when its receiver has room
// again, so that a send can wait for it.
func (n *Notifier) dial() (*net.UnixConn, error) {
	return net.DialUnix("unixgram", nil, n.addr)
}

func (n *Notifier) fail(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("notify service manager at %q: %w", n.addr.Name, cause(err))
}

// cause removes the addresses that package net adds: one is empty, and the
// message names the other.
func cause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

// statusLine returns the assignment of STATUS. See [Notifier] for what it does
// to the text. systemd takes a carriage return for an end of line, too, and
// ignores a datagram with a NUL in it.
func statusLine(status string) string {
	status = strings.ToValidUTF8(status[:min(len(status), maxStatus)], "")
	return "STATUS=" + strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, status)
}
