package traffic

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// An Exchange is what became of one request.
type Exchange struct {
	Began     time.Time     // the dial; on a connection in use, the sending
	FirstByte time.Time     // of the response; zero if there was none
	Ended     time.Time     // the response's last byte, or the failure
	Paused    time.Duration // before FirstByte, by the client itself
	Nth       int           // of its connection, from 1; 0 if the dial failed
	Status    int           // of a whole response, else 0
	Header    http.Header   // of the response
	Err       error         // why there is no whole response
}

// A Conn is a client's connection.
type Conn struct {
	cfg  Config
	conn net.Conn
	r    *bufio.Reader
	n    int
}

// Dial connects, by the deadline.
func Dial(cfg Config, deadline time.Time) (*Conn, error) {
	conn, err := (&net.Dialer{Deadline: deadline}).Dial(cfg.Network, cfg.Addr)
	if err != nil {
		return nil, err
	}
	if cfg.TLS {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	return &Conn{cfg: cfg, conn: conn, r: bufio.NewReader(conn)}, nil
}

// Close closes the connection.
func (c *Conn) Close() error { return c.conn.Close() }

// Do sends a request, and waits for the response until the deadline. What it
// does not find set of x it sets. It reports whether the connection may be
// used again.
func (c *Conn) Do(x *Exchange, deadline time.Time) (again bool) {
	c.n++
	x.Nth = c.n
	if x.Began.IsZero() {
		x.Began = time.Now()
	}
	c.conn.SetDeadline(deadline)
	if c.cfg.Mode == SlowStart && c.n == 1 {
		x.pause(slowStart)
	}
	sendErr := c.send(x)
	// A server may answer and close before it has read everything.
	again, err := c.receive(x)
	x.Ended = time.Now()
	switch {
	case err == nil:
		return again && sendErr == nil
	case sendErr != nil:
		x.Err = fmt.Errorf("request %d of a connection, while sending: %w", c.n, sendErr)
	case x.FirstByte.IsZero():
		x.Err = fmt.Errorf("request %d of a connection, before its response: %w", c.n, err)
	default:
		x.Err = fmt.Errorf("request %d of a connection, in its response: %w", c.n, err)
	}
	return false
}

// receive reads a response.
func (c *Conn) receive(x *Exchange) (again bool, err error) {
	if _, err := c.r.Peek(1); err != nil {
		return false, err
	}
	x.FirstByte = time.Now()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return false, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if err != nil {
		return false, err
	}
	x.Status, x.Header = resp.StatusCode, resp.Header
	return !resp.Close, nil
}

// Await waits for the server to close an idle connection, and reports whether
// it did not, up to the deadline.
func (c *Conn) Await(deadline time.Time) bool {
	c.conn.SetReadDeadline(deadline)
	return c.quiet()
}

// Watch begins to wait for the server to close an idle connection. What it
// returns ends that, and reports whether the server did not.
func (c *Conn) Watch() (stop func() bool) {
	c.conn.SetReadDeadline(time.Time{})
	open := make(chan bool, 1)
	go func() { open <- c.quiet() }() // until stop
	return func() bool {
		c.conn.SetReadDeadline(time.Unix(1, 0))
		return <-open
	}
}

// quiet waits for the read deadline and reports whether nothing came before.
func (c *Conn) quiet() bool {
	_, err := c.r.Peek(1)
	// A deadline leaves a TLS connection unusable only for writes.
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

func (x *Exchange) pause(d time.Duration) {
	time.Sleep(d)
	x.Paused += d
}

var upload = strings.Repeat("usher 8\n", uploadSize/parts/8)

// send sends one request.
func (c *Conn) send(x *Exchange) error {
	path := c.cfg.Path
	if path == "" {
		path = "/"
	}
	if c.cfg.Mode != Upload && c.cfg.Body != "" {
		_, err := fmt.Fprintf(c.conn, "POST %s HTTP/1.1\r\nHost: usher.test\r\nContent-Length: %d\r\n\r\n%s", path, len(c.cfg.Body), c.cfg.Body)
		return err
	}
	if c.cfg.Mode != Upload {
		_, err := io.WriteString(c.conn, "GET "+path+" HTTP/1.1\r\nHost: usher.test\r\n\r\n")
		return err
	}
	if _, err := fmt.Fprintf(c.conn, "POST %s HTTP/1.1\r\nHost: usher.test\r\nContent-Length: %d\r\n\r\n", path, uploadSize); err != nil {
		return err
	}
	for range parts {
		if _, err := io.WriteString(c.conn, upload); err != nil {
			return err
		}
		x.pause(partPause)
	}
	return nil
}
