package load

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A server2 is the server's side of an HTTP/2 connection.
type server2 struct {
	t *testing.T
	c net.Conn
	*http2.Framer
}

func newServer2(t *testing.T, c net.Conn) *server2 {
	preface := make([]byte, len(http2.ClientPreface))
	io.ReadFull(c, preface)
	s := &server2{t, c, http2.NewFramer(c, c)}
	s.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 100})
	return s
}

// requests reads until n streams have begun. It returns fewer if the client
// leaves.
func (s *server2) requests(n int) (ids []uint32) {
	for len(ids) < n {
		f, err := s.ReadFrame()
		if err != nil {
			return ids
		}
		if f, ok := f.(*http2.HeadersFrame); ok {
			ids = append(ids, f.StreamID)
		}
	}
	return ids
}

func (s *server2) headers(id uint32, status string, end bool) {
	var b bytes.Buffer
	hpack.NewEncoder(&b).WriteField(hpack.HeaderField{Name: ":status", Value: status})
	s.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: end})
}

func (s *server2) answer(id uint32) {
	s.headers(id, "200", false)
	s.WriteData(id, true, []byte("ok"))
}

// TestHTTP2Ends has three streams of one connection end in each way.
func TestHTTP2Ends(t *testing.T) {
	for _, tt := range []struct {
		name string
		want map[Outcome]int
		end  func(s *server2, ids []uint32)
	}{
		{"answered", map[Outcome]int{Answered: 3}, func(s *server2, ids []uint32) {
			s.headers(ids[0], "103", false)
			s.answer(ids[0])
			s.headers(ids[1], "204", true)
			s.headers(ids[2], "200", false)
			s.WriteData(ids[2], false, []byte("o"))
			s.WriteData(ids[2], true, []byte("k"))
			s.requests(1)
		}},
		{"statuses", map[Outcome]int{Rejected: 2, Failed: 1}, func(s *server2, ids []uint32) {
			s.headers(ids[0], "503", true)
			s.headers(ids[1], "429", true)
			s.headers(ids[2], "500", true)
			s.requests(1)
		}},
		{"closed", map[Outcome]int{Answered: 1, Lost: 2}, func(s *server2, ids []uint32) {
			s.answer(ids[1])
			s.headers(ids[0], "200", false)
			s.WriteData(ids[0], false, []byte("half"))
		}},
		{"GOAWAY above the first", map[Outcome]int{Answered: 1, Refused: 2}, func(s *server2, ids []uint32) {
			s.WriteGoAway(ids[0], http2.ErrCodeNo, nil)
			s.answer(ids[0])
			s.requests(1) // the client closes
		}},
		{"GOAWAY above the second, and closed", map[Outcome]int{Answered: 1, Lost: 1, Refused: 1}, func(s *server2, ids []uint32) {
			s.WriteGoAway(ids[1], http2.ErrCodeNo, nil)
			s.answer(ids[0])
		}},
		{"two GOAWAYs", map[Outcome]int{Answered: 2, Refused: 1}, func(s *server2, ids []uint32) {
			s.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil)
			s.answer(ids[0])
			s.WriteGoAway(ids[1], http2.ErrCodeNo, nil)
			s.answer(ids[1])
			s.requests(1)
		}},
		{"RST_STREAM", map[Outcome]int{Answered: 1, Lost: 1, Refused: 1}, func(s *server2, ids []uint32) {
			s.WriteRSTStream(ids[0], http2.ErrCodeRefusedStream)
			s.headers(ids[1], "200", false)
			s.WriteRSTStream(ids[1], http2.ErrCodeInternal)
			s.answer(ids[2])
			s.WriteRSTStream(ids[2], http2.ErrCodeNo) // which is late
			s.requests(1)
		}},
		{"garbage", map[Outcome]int{Lost: 3}, func(s *server2, ids []uint32) {
			io.WriteString(s.c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			s.requests(1)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, func(c net.Conn) {
				s := newServer2(t, c)
				if ids := s.requests(3); len(ids) == 3 {
					tt.end(s, ids)
				}
			})
			r, err := Closed{
				Server: Server{Addr: addr, HTTP2: true}, Clients: 1, Streams: 3, Requests: 3, Duration: long, GoOn: true,
			}.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			check(t, r, tt.want)
		})
	}
}

// TestHTTP2Handshake: a connection that was established and comes to nothing
// is a loss.
func TestHTTP2Handshake(t *testing.T) {
	for _, tt := range []struct {
		name   string
		accept func(net.Conn)
		want   Outcome
	}{
		{"closed", func(net.Conn) {}, Lost},
		{"reset", func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }, Lost},
		{"GOAWAY", func(c net.Conn) {
			s := newServer2(t, c)
			s.WriteGoAway(0, http2.ErrCodeNo, nil)
			s.requests(1)
		}, Refused},
		{"HTTP/1", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }, Lost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr := serve(t, tt.accept)
			r, err := Closed{
				Server: Server{Addr: addr, HTTP2: true}, Clients: 2, Requests: 10, Duration: long, GoOn: true,
			}.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			check(t, r, map[Outcome]int{tt.want: 10})
		})
	}
}

// TestHTTP2ClosedWhileIdle: what the server closes while nothing is under way
// loses nothing, and is made anew. On a machine that stalls, a request can meet
// the close, and is rightly lost or refused; so once in ten times will do.
func TestHTTP2ClosedWhileIdle(t *testing.T) {
	t.Parallel()
	for _, goAway := range []bool{false, true} {
		var r *Result
		for try := 0; try < 10 && (r == nil || r.Of(Answered) != 5); try++ {
			var conns atomic.Int64
			addr := serve(t, func(c net.Conn) {
				conns.Add(1)
				s := newServer2(t, c)
				for _, id := range s.requests(1) {
					if goAway {
						s.WriteGoAway(id, http2.ErrCodeNo, nil)
					}
					s.answer(id)
				}
			})
			var err error
			r, err = Open{
				Server: Server{Addr: addr, HTTP2: true}, Rate: 5, Steady: true, Duration: 1100 * time.Millisecond,
			}.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n := r.Of(Answered); conns.Load() < int64(n) {
				t.Errorf("%d answered on %d connections", n, conns.Load())
			}
		}
		check(t, r, map[Outcome]int{Answered: 5})
	}
}

// TestHTTP2Real has net/http drop every k-th response, with and without TLS.
func TestHTTP2Real(t *testing.T) {
	t.Parallel()
	const requests, k = 140, 7
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %t", secure), func(t *testing.T) {
			var seen atomic.Int64
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.ProtoMajor != 2 {
					t.Errorf("%s", r.Proto)
				}
				n := seen.Add(1)
				w.Header().Set("X-Number", fmt.Sprint(n))
				if n%k == 0 {
					w.Write([]byte("half"))
					panic(http.ErrAbortHandler)
				}
				w.Write(bytes.Repeat([]byte("ok"), 1<<13))
			}))
			srv.Config.Protocols = new(http.Protocols)
			srv.Config.Protocols.SetHTTP2(true)
			srv.Config.Protocols.SetUnencryptedHTTP2(true)
			if secure {
				srv.TLS = &tls.Config{NextProtos: []string{"h2"}}
				srv.StartTLS()
			} else {
				srv.Start()
			}
			defer srv.Close()
			var numbered atomic.Int64
			s := Server{Addr: srv.Listener.Addr().String(), TLS: secure, HTTP2: true}
			r, err := Closed{
				Server: s, Clients: 3, Streams: 4, Requests: requests, Duration: long, GoOn: true,
				Each: func(x *Exchange, o Outcome) {
					if o == Answered && x.Header.Get("X-Number") != "" {
						numbered.Add(1)
					}
				},
			}.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			check(t, r, map[Outcome]int{Answered: requests - requests/k, Lost: requests / k})
			if numbered.Load() != requests-requests/k {
				t.Errorf("%d responses had their header", numbered.Load())
			}
			seen.Store(0)
			for _, perRequest := range []bool{false, true} {
				r, err = Open{Server: s, Rate: 500, Steady: true, Clients: 2, PerRequest: perRequest, Duration: 141 * time.Millisecond}.Run(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				check(t, r, map[Outcome]int{Answered: 60, Lost: 10})
			}
		})
	}
}
