package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// patience is how long a client waits for a response; far above any wait that
// is part of a measurement.
const patience = 20 * time.Second

// The requests. A client does as little as it can for each: it sends these
// bytes, and reads as many as it expects.
var (
	getRoot      = []byte("GET / HTTP/1.1\r\nHost: usher.test\r\n\r\n")
	getRootClose = []byte("GET / HTTP/1.1\r\nHost: usher.test\r\nConnection: close\r\n\r\n")
	getFile      = []byte("GET /file HTTP/1.1\r\nHost: usher.test\r\n\r\n")
)

// dial connects to a server.
func dial(addr string) (*net.TCPConn, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if !ap.Addr().IsLoopback() {
		return nil, fmt.Errorf("connect: %s is not a loopback address", addr)
	}
	return net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(ap))
}

var (
	headerEnd     = []byte("\r\n\r\n")
	contentLength = []byte("\r\nContent-Length: ")
	statusOK      = []byte("HTTP/1.1 200 ")
	bodyOK        = []byte("\r\n\r\nok")
)

// readHead reads into buf until it holds the header of a response, which must
// be a 200 with a length, and returns the number of bytes read and the
// response's whole size.
func readHead(r io.Reader, buf []byte) (n int, size int64, err error) {
	for {
		m, err := r.Read(buf[n:])
		n += m
		if i := bytes.Index(buf[:n], headerEnd); i >= 0 {
			head := buf[:i+len(headerEnd)]
			_, value, _ := bytes.Cut(head, contentLength)
			value, _, _ = bytes.Cut(value, []byte("\r\n"))
			length, err := strconv.ParseInt(string(value), 10, 64)
			if err != nil || !bytes.HasPrefix(head, statusOK) {
				return n, 0, fmt.Errorf("not a 200 with a Content-Length: %q", head)
			}
			return n, int64(len(head)) + length, nil
		}
		if err != nil {
			return n, 0, fmt.Errorf("read a response's header: %w", err)
		}
		if n == len(buf) {
			return n, 0, errors.New("a response's header is too long")
		}
	}
}

// checkOK reports what is wrong with a whole response of /.
func checkOK(resp []byte) error {
	if !bytes.HasPrefix(resp, statusOK) || !bytes.HasSuffix(resp, bodyOK) {
		return fmt.Errorf("unexpected response: %q", resp)
	}
	return nil
}

// readOK reads a response of / and returns it.
func readOK(r io.Reader) ([]byte, error) {
	buf := make([]byte, 4096)
	n, size, err := readHead(r, buf)
	if err != nil {
		return nil, err
	}
	if size > int64(len(buf)) || int64(n) > size {
		return nil, fmt.Errorf("unexpected response: %q", buf[:n])
	}
	resp := buf[:size]
	if _, err := io.ReadFull(r, resp[n:]); err != nil {
		return nil, fmt.Errorf("read a response: %w", err)
	}
	return resp, checkOK(resp)
}

// A worker asks a server for one response after the other.
type worker interface {
	// do makes one request and returns how much work that was, in the unit
	// of the measurement.
	do() (int64, error)
	// Close ends the worker, also in the middle of do.
	Close() error
}

// A dialWorker makes a worker for the server at an address.
type dialWorker func(addr string) (worker, error)

// openWorkers makes n workers. They are closed by the function it returns, and
// when ctx ends.
func openWorkers(ctx context.Context, n int, open dialWorker, addr string) (workers []worker, closeAll func(), err error) {
	all := func() {
		for _, w := range workers {
			w.Close()
		}
	}
	for range n {
		w, err := open(addr)
		if err != nil {
			all()
			return nil, nil, err
		}
		workers = append(workers, w)
	}
	stop := context.AfterFunc(ctx, all)
	return workers, func() {
		if stop() {
			all()
		}
	}, nil
}

// A keepAliveClient asks for / on one connection.
type keepAliveClient struct {
	conn *net.TCPConn
	resp []byte // as long as each response is
}

// openKeepAlive connects, and makes the first request to learn how long the
// response is. All are of the same length, as net/http writes dates.
func openKeepAlive(addr string) (worker, error) {
	conn, err := dial(addr)
	if err != nil {
		return nil, err
	}
	c, err := newKeepAlive(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

func newKeepAlive(conn *net.TCPConn) (*keepAliveClient, error) {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(getRoot); err != nil {
		return nil, err
	}
	resp, err := readOK(conn)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	return &keepAliveClient{conn, resp}, nil
}

func (c *keepAliveClient) do() (int64, error) {
	if _, err := c.conn.Write(getRoot); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(c.conn, c.resp); err != nil {
		return 0, err
	}
	return 1, checkOK(c.resp)
}

func (c *keepAliveClient) Close() error { return c.conn.Close() }

// A closingClient makes a connection for each request, and asks the server to
// close it.
type closingClient struct {
	addr string
	buf  []byte
}

func openClosing(addr string) (worker, error) {
	return &closingClient{addr: addr, buf: make([]byte, 4096)}, nil
}

func (c *closingClient) do() (int64, error) {
	conn, err := dial(c.addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(getRootClose); err != nil {
		return 0, err
	}
	for n := 0; n < len(c.buf); {
		m, err := conn.Read(c.buf[n:])
		n += m
		if err == io.EOF {
			return 1, checkOK(c.buf[:n])
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, errors.New("a response of / is too long")
}

// Close does nothing: do does not wait longer than patience.
func (c *closingClient) Close() error { return nil }

// A fileClient asks for /file on one connection and counts its bytes.
type fileClient struct {
	conn *net.TCPConn
	buf  []byte
}

func openFile(addr string) (worker, error) {
	conn, err := dial(addr)
	if err != nil {
		return nil, err
	}
	return &fileClient{conn: conn, buf: make([]byte, 4096)}, nil
}

func (c *fileClient) do() (int64, error) {
	if _, err := c.conn.Write(getFile); err != nil {
		return 0, err
	}
	n, size, err := readHead(c.conn, c.buf)
	if err != nil {
		return 0, err
	}
	return size, discard(c.conn, size-int64(n))
}

func (c *fileClient) Close() error { return c.conn.Close() }
