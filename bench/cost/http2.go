package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// measureHTTP2 compares a tiny handler and a large body over HTTP/2, without TLS
// and with it. Each connection has one stream at a time, so that nothing is
// shared among several.
func measureHTTP2(ctx context.Context, l *lab) error {
	for _, p := range []struct {
		name string
		flag string
		tls  bool
	}{{"without TLS", "-h2c", false}, {"over TLS", "-tls", true}} {
		contestants := l.withUsher()
		for i := range contestants {
			contestants[i].args = append(contestants[i].args, p.flag)
		}
		c, err := l.compare(ctx, contestants, l.slices, l.slice, l.clients, openHTTP2("/", p.tls))
		if err != nil {
			return err
		}
		l.heading(fmt.Sprintf("http2: GET / %s on %d connections, %d slices of %v for each server", p.name, l.clients, l.slices, l.slice))
		l.printComparison(contestants, c, requests)

		d := max(l.slice, fileSlice)
		rounds := max(1, int(time.Duration(l.slices)*l.slice/(2*d)))
		c, err = l.compare(ctx, contestants, rounds, d, l.fileClients, openHTTP2("/file", p.tls))
		if err != nil {
			return err
		}
		l.heading(fmt.Sprintf("http2: GET /file of 16 MiB %s on %d connections, %d slices of %v for each server", p.name, l.fileClients, rounds, d))
		l.printComparison(contestants, c, unit{rate: "GiB/s", cost: "server CPU ms/GiB", perRate: 1 << 30, perCost: 1e6 / (1 << 30)})
	}
	l.say(false, "no budget")
	return nil
}

// Of HTTP/2's frames (RFC 9113).
const (
	frameHeader = 9

	typeData         = 0
	typeHeaders      = 1
	typeSettings     = 4
	typeWindowUpdate = 8

	flagEndStream  = 1
	flagAck        = 1
	flagEndHeaders = 4
)

func http2Frame(typ, flags byte, stream uint32, payload string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(typ))
	b = binary.BigEndian.AppendUint32(append(b, flags), stream)
	return append(b, payload...)
}

// An http2Client asks for one path, on one connection, over and over.
type http2Client struct {
	conn    net.Conn
	r       *bufio.Reader
	request []byte
	stream  uint32
	bytes   bool // counts those of bodies, not requests
}

// openHTTP2 returns what connects and asks for path, which must not be longer
// than 126 bytes.
func openHTTP2(path string, secure bool) dialWorker {
	return func(addr string) (worker, error) {
		var conn net.Conn
		conn, err := dial(addr)
		if err != nil {
			return nil, err
		}
		if secure {
			tc := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
			conn.SetDeadline(time.Now().Add(patience))
			if err := tc.Handshake(); err != nil {
				conn.Close()
				return nil, err
			}
			conn.SetDeadline(time.Time{})
			conn = tc
		}
		c := &http2Client{conn: conn, r: bufio.NewReaderSize(conn, 64<<10), stream: 1, bytes: path != "/"}
		// GET and http of the static table, then the path and the authority.
		c.request = http2Frame(typeHeaders, flagEndStream|flagEndHeaders, 1,
			"\x82\x86\x04"+string(rune(len(path)))+path+"\x41\x0ausher.test")
		hello := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		hello = append(hello, http2Frame(typeSettings, 0, 0, "\x00\x04\x7f\xff\xff\xff")...) // the window of a stream
		hello = append(hello, http2Frame(typeWindowUpdate, 0, 0, "\x7f\xff\x00\x00")...)     // and that of the connection
		if _, err := conn.Write(hello); err != nil {
			conn.Close()
			return nil, err
		}
		return c, nil
	}
}

func (c *http2Client) do() (int64, error) {
	binary.BigEndian.PutUint32(c.request[5:], c.stream)
	if _, err := c.conn.Write(c.request); err != nil {
		return 0, err
	}
	var body int64
	for first := true; ; {
		h, err := c.r.Peek(frameHeader)
		if err != nil {
			return 0, err
		}
		n, typ, flags := int(binary.BigEndian.Uint32(h)>>8), h[3], h[4]
		c.r.Discard(frameHeader)
		switch typ {
		case typeHeaders:
			status, err := c.r.Peek(1)
			if err != nil {
				return 0, err
			}
			if first && status[0] != 0x88 { // 200, in the static table
				return 0, errors.New("not a 200")
			}
			first = false
		case typeData:
			body += int64(n)
		case typeSettings:
			if flags&flagAck == 0 {
				if _, err := c.conn.Write(http2Frame(typeSettings, flagAck, 0, "")); err != nil {
					return 0, err
				}
			}
		}
		if _, err := c.r.Discard(n); err != nil {
			return 0, err
		}
		if (typ == typeHeaders || typ == typeData) && flags&flagEndStream != 0 {
			break
		}
	}
	c.stream += 2
	update := binary.BigEndian.AppendUint32(nil, uint32(body))
	if _, err := c.conn.Write(http2Frame(typeWindowUpdate, 0, 0, string(update))); err != nil {
		return 0, err
	}
	if c.bytes {
		return body, nil
	}
	return 1, nil
}

func (c *http2Client) Close() error { return c.conn.Close() }
