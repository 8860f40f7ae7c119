// Package sdnotify speaks the protocols between systemd, or another service
// manager, and a process: the process tells its state (sd_notify), is watched
// (sd_watchdog_enabled) and is handed listening sockets (sd_listen_fds).
//
// All of them use environment variables, which children inherit; see [Scrub].
package sdnotify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode"
)

const (
	// sendTimeout bounds a send: a service manager that does not read must not
	// stop the service.
	sendTimeout = time.Second

	// maxStatus bounds a status, in bytes: systemd ignores a datagram of more
	// than 4096, and with a long status the READY=1 next to it.
	maxStatus = 2048
)

// A Notifier sends the state of this process to the service manager. [New]
// makes it; the nil Notifier does nothing, so that callers need not ask
// whether there is a service manager.
//
// A status is one line for the administrator. It replaces the one before, and
// an empty one removes it. Control characters in it become spaces, newlines
// above all, as each line of a datagram is an assignment. Bytes that are not
// UTF-8, and those after the first 2048, are left out.
//
// All methods may be called from many goroutines at once and take about a
// second at most. Their errors name the socket and wrap
// [os.ErrDeadlineExceeded] if the service manager does not read, and
// [net.ErrClosed] after Close.
type Notifier struct {
	addr *net.UnixAddr

	// turn holds the connection, nil after Close, while nobody uses it. Each
	// has a deadline from before its turn, and turns are in order: who waits
	// gets it by the end of its own. The deadline of a connection that all
	// write to at once would be that of the last to come.
	turn chan *net.UnixConn
}

// New returns a Notifier for the socket in NOTIFY_SOCKET, an absolute path or,
// on Linux, "@" and an abstract name; nil if the variable is unset or empty. It
// connects: that nobody listens is an error here already, and a process that
// loses its access to the path later can still send.
//
// Where the system has no such sockets, the error wraps [errors.ErrUnsupported].
func New(getenv func(string) string) (*Notifier, error) {
	name := getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil, nil
	}
	n := &Notifier{&net.UnixAddr{Name: name, Net: "unixgram"}, make(chan *net.UnixConn, 1)}
	conn, err := n.dial()
	if err != nil {
		return nil, fmt.Errorf("NOTIFY_SOCKET=%q: %w", name, cause(err))
	}
	n.turn <- conn
	return n, nil
}

// Ready tells that the service has started, or has finished reloading.
func (n *Notifier) Ready(status string) error {
	return n.send("READY=1\n" + statusLine(status))
}

// Reloading tells that the service has begun to reload. [Notifier.Ready] must
// follow.
func (n *Notifier) Reloading(status string) error {
	// In one datagram: without the time, systemd does not take the reload for
	// the one that it has asked a service of Type=notify-reload for, and waits.
	return n.send("RELOADING=1\n" + monotonicLine() + statusLine(status))
}

// Stopping tells that the service has begun to shut down.
func (n *Notifier) Stopping(status string) error {
	return n.send("STOPPING=1\n" + statusLine(status))
}

// Status sends a status and leaves the state as it is.
func (n *Notifier) Status(status string) error { return n.send(statusLine(status)) }

// Watchdog tells that the service is alive. See [WatchdogInterval].
func (n *Notifier) Watchdog() error { return n.send("WATCHDOG=1") }

// Close waits for the sends under way and closes the socket. Closing again
// does nothing and returns nil.
func (n *Notifier) Close() error {
	if n == nil {
		return nil
	}
	conn := <-n.turn
	n.turn <- nil
	if conn == nil {
		return nil
	}
	return n.fail(conn.Close())
}

func (n *Notifier) send(state string) error {
	if n == nil {
		return nil
	}
	deadline := time.Now().Add(sendTimeout)
	conn := <-n.turn
	defer func() { n.turn <- conn }()
	if conn == nil {
		return n.fail(net.ErrClosed)
	}
	err := write(conn, state, deadline)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		// The socket stays connected to one receiver; the name may have a new one.
		if replacement, dialErr := n.dial(); dialErr == nil {
			conn.Close()
			conn = replacement
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

// dial connects, as only a connected socket tells when its receiver has room
// again, so that a send can wait for it.
func (n *Notifier) dial() (*net.UnixConn, error) {
	name := n.addr.Name
	switch {
	case slices.Contains([]string{"windows", "plan9", "js", "wasip1"}, runtime.GOOS):
		return nil, errors.ErrUnsupported // Unix sockets, if any, are streams.
	case name[0] != '/' && name[0] != '@' || strings.Contains(name, "\x00"):
		return nil, errors.New("neither an absolute path nor an abstract name")
	case name[0] == '@' && runtime.GOOS != "linux":
		// It would name a file in the working directory.
		return nil, fmt.Errorf("abstract name: %w", errors.ErrUnsupported)
	}
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

// statusLine returns the assignment of STATUS, see [Notifier]. To systemd, a
// carriage return ends a line too, and a NUL makes it ignore the datagram.
func statusLine(status string) string {
	status = strings.ToValidUTF8(status[:min(len(status), maxStatus)], "")
	return "STATUS=" + strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, status)
}
