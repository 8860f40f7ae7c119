package load

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// errUnprocessed is the error of a request of which the server says that it has
// done nothing.
var errUnprocessed = errors.New("not processed, says the server")

// A client2 is an HTTP/2 client with one connection at a time.
type client2 struct {
	cfg traffic.Config

	mu   sync.Mutex
	conn *conn2 // nil if there is none that takes streams
}

// do makes a request, on a new connection if there is none. It is never made
// again.
func (c *client2) do(x *Exchange, deadline time.Time) {
	if x.Began.IsZero() {
		x.Began = time.Now()
	}
	for {
		conn, fresh, err := c.get(deadline)
		if err != nil {
			x.Ended, x.Err = time.Now(), err
			if _, ok := errors.AsType[errHandshake](err); ok {
				x.Nth = 1 // the connection was established
			}
			return
		}
		sent := conn.do(x, deadline)
		x.Ended = time.Now()
		if sent || x.Err != nil {
			return
		}
		c.drop(conn)
		if !fresh {
			continue // it had ended before there was anything to lose
		}
		x.Nth, x.Err = 1, fmt.Errorf("on a new connection: %w", conn.reason())
		return
	}
}

// get returns a connection, and whether it was made now.
func (c *client2) get(deadline time.Time) (conn *conn2, fresh bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil && c.conn.open() {
		return c.conn, false, nil
	}
	if c.conn, err = dial2(c.cfg, deadline); err != nil {
		c.conn = nil
		return nil, false, err
	}
	return c.conn, true, nil
}

// drop forgets a connection that takes no streams. It closes itself when it
// has none.
func (c *client2) drop(conn *conn2) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn {
		c.conn = nil
	}
}

// close is called when all requests have ended.
func (c *client2) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.fail(net.ErrClosed)
		<-c.conn.ended
	}
}

// errHandshake is an error after connect and before the first stream.
type errHandshake struct{ error }

func (e errHandshake) Unwrap() error { return e.error }

const (
	// window is large enough that no response waits for updates of it.
	window = 1 << 30
	// maxStreams is how many streams a connection has at most, whatever the
	// server allows.
	maxStreams = 1000
)

// A conn2 is an HTTP/2 connection. It sends requests without bodies.
type conn2 struct {
	cfg    traffic.Config
	conn   net.Conn
	places chan struct{} // one in it for each open stream
	ended  chan struct{} // closed when the reader has ended

	// The reader has these to itself.
	received uint32 // since the last update of the connection's window

	mu       sync.Mutex
	framer   *http2.Framer // written to under mu, read by the reader
	w        *bufio.Writer // below framer
	block    bytes.Buffer  // below encoder
	encoder  *hpack.Encoder
	streams  map[uint32]*stream
	next     uint32
	requests int
	leaving  bool  // GOAWAY has come
	writeErr error // the reader is to end soon
	err      error // it has
}

type stream struct {
	x    *Exchange
	done chan struct{} // closed when x is complete
}

// dial2 connects and waits for the server's settings, which say how many
// streams there may be.
func dial2(cfg traffic.Config, deadline time.Time) (*conn2, error) {
	conn, err := (&net.Dialer{Deadline: deadline}).Dial(cfg.Network, cfg.Addr)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(deadline)
	c := &conn2{cfg: cfg, conn: conn, ended: make(chan struct{}), streams: make(map[uint32]*stream), next: 1}
	if err := c.shakeHands(); err != nil {
		c.conn.Close()
		return nil, errHandshake{fmt.Errorf("on a new connection: %w", err)}
	}
	c.conn.SetReadDeadline(time.Time{})
	go c.read()
	return c, nil
}

func (c *conn2) shakeHands() error {
	if c.cfg.TLS {
		t := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{http2.NextProtoTLS}})
		c.conn = t
		if err := t.Handshake(); err != nil {
			return err
		}
		if p := t.ConnectionState().NegotiatedProtocol; p != http2.NextProtoTLS {
			return fmt.Errorf("the server speaks %q, not HTTP/2", p)
		}
	}
	c.w = bufio.NewWriter(c.conn)
	c.framer = http2.NewFramer(c.w, bufio.NewReader(c.conn))
	c.framer.SetMaxReadFrameSize(1 << 14) // as is the rule without a setting
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.encoder = hpack.NewEncoder(&c.block)
	io.WriteString(c.w, http2.ClientPreface)
	c.framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
	c.framer.WriteWindowUpdate(0, window)
	if err := c.w.Flush(); err != nil {
		return err
	}
	f, err := c.framer.ReadFrame()
	if err != nil {
		return err
	}
	settings, ok := f.(*http2.SettingsFrame)
	if !ok || settings.IsAck() {
		return fmt.Errorf("the server begins with %v, not with its settings", f.Header())
	}
	n := uint32(maxStreams)
	if v, ok := settings.Value(http2.SettingMaxConcurrentStreams); ok {
		n = min(n, v)
	}
	c.places = make(chan struct{}, n)
	c.framer.WriteSettingsAck()
	return c.w.Flush()
}

// open reports whether the connection takes streams.
func (c *conn2) open() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err == nil && c.writeErr == nil && !c.leaving
}

// reason is why it does not.
func (c *conn2) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaving {
		return errUnprocessed
	}
	return cmp.Or(c.err, c.writeErr)
}

// do makes a request and waits for its end. It reports false if nothing was
// sent; x.Err is set if that is because its time was over.
func (c *conn2) do(x *Exchange, deadline time.Time) (sent bool) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case c.places <- struct{}{}:
		defer func() { <-c.places }()
	case <-c.ended:
		return false
	case <-timer.C:
		x.Nth, x.Err = 2, fmt.Errorf("waiting for a stream: %w", os.ErrDeadlineExceeded)
		return false
	}
	id, s := c.begin(x, deadline)
	if s == nil {
		return false
	}
	select {
	case <-s.done:
		return true
	case <-timer.C:
	}
	// The reader is no longer to touch x, which may have ended meanwhile.
	c.mu.Lock()
	if c.streams[id] == s {
		c.end(id, s, fmt.Errorf("stream %d: %w", id, os.ErrDeadlineExceeded))
		c.framer.WriteRSTStream(id, http2.ErrCodeCancel)
		c.flush()
	}
	c.mu.Unlock()
	<-s.done
	return true
}

// begin sends a request. It returns nil if the connection takes none.
func (c *conn2) begin(x *Exchange, deadline time.Time) (uint32, *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.writeErr != nil || c.leaving {
		return 0, nil
	}
	c.requests++
	x.Nth = c.requests
	id, s := c.next, &stream{x, make(chan struct{})}
	c.next += 2
	c.streams[id] = s
	c.block.Reset()
	scheme, path := "http", c.cfg.Path
	if c.cfg.TLS {
		scheme = "https"
	}
	if path == "" {
		path = "/"
	}
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: http.MethodGet}, {Name: ":scheme", Value: scheme},
		{Name: ":authority", Value: "usher.test"}, {Name: ":path", Value: path},
	} {
		c.encoder.WriteField(f)
	}
	c.conn.SetWriteDeadline(deadline)
	c.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: c.block.Bytes(), EndStream: true, EndHeaders: true,
	})
	c.flush()
	return id, s
}

// flush sends what was written. An error ends the reader, too, which says so
// to all streams after it has read what there is: the server may have answered
// and closed.
func (c *conn2) flush() {
	if err := c.w.Flush(); err != nil && c.writeErr == nil {
		c.writeErr = err
		c.conn.SetReadDeadline(time.Now().Add(lastWords))
	}
}

// lastWords is how long to read on a connection that cannot be written to.
const lastWords = 100 * time.Millisecond

// end completes a stream's exchange.
func (c *conn2) end(id uint32, s *stream, err error) {
	delete(c.streams, id)
	s.x.Err = err
	if err != nil {
		s.x.Status = 0
	}
	close(s.done)
	if c.leaving && len(c.streams) == 0 {
		c.conn.Close()
	}
}

// fail ends the connection.
func (c *conn2) fail(err error) {
	c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = cmp.Or(c.writeErr, err)
	}
	for id, s := range c.streams {
		c.end(id, s, fmt.Errorf("stream %d: %w", id, c.err))
	}
}

// read reads until the connection ends.
func (c *conn2) read() {
	defer close(c.ended)
	for {
		f, err := c.framer.ReadFrame()
		if se, ok := errors.AsType[http2.StreamError](err); ok {
			c.mu.Lock()
			if s := c.streams[se.StreamID]; s != nil {
				c.end(se.StreamID, s, fmt.Errorf("stream %d: %w", se.StreamID, err))
			}
			c.mu.Unlock()
			continue
		}
		if err != nil {
			c.fail(err)
			return
		}
		c.handle(f)
	}
}

// handle takes one frame.
func (c *conn2) handle(f http2.Frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := f.Header().StreamID
	s := c.streams[id] // nil for the connection's own frames, and late ones
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			c.framer.WriteSettingsAck()
			c.flush()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			c.framer.WritePing(true, f.Data)
			c.flush()
		}
	case *http2.GoAwayFrame:
		c.leaving = true
		for id, s := range c.streams {
			if id > f.LastStreamID {
				c.end(id, s, fmt.Errorf("stream %d: GOAWAY, last stream %d: %w", id, f.LastStreamID, errUnprocessed))
			}
		}
		if len(c.streams) == 0 {
			c.conn.Close()
		}
	case *http2.RSTStreamFrame:
		if s == nil {
			return
		}
		err := fmt.Errorf("stream %d: RST_STREAM, %v", id, f.ErrCode)
		if f.ErrCode == http2.ErrCodeRefusedStream {
			err = fmt.Errorf("%w: %w", err, errUnprocessed)
		}
		c.end(id, s, err)
	case *http2.MetaHeadersFrame:
		if s == nil {
			return
		}
		if s.x.FirstByte.IsZero() {
			s.x.FirstByte = time.Now()
		}
		if status, err := strconv.Atoi(f.PseudoValue("status")); err == nil && status >= 200 {
			s.x.Status = status
			s.x.Header = make(http.Header)
			for _, h := range f.RegularFields() {
				s.x.Header.Add(h.Name, h.Value)
			}
		}
		if f.StreamEnded() {
			c.end(id, s, nil)
		}
	case *http2.DataFrame:
		if c.received += f.Length; c.received > window/2 {
			c.framer.WriteWindowUpdate(0, c.received)
			c.flush()
			c.received = 0
		}
		if s != nil && f.StreamEnded() {
			c.end(id, s, nil)
		}
	}
}
