package track

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/seed-235859eb/usher/internal/memnet"
	"github.com/seed-235859eb/usher/internal/selfsigned"
)

// nobody owns connections and wants to hear of nothing.
type nobody struct{}

func (nobody) Notice(*Conn, Events) {}

// connect returns the two ends of a connection.
func connect(t testing.TB, network string) (client, server net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = t.TempDir() + "/s"
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// pair returns the two ends of a connection, of which the server's is followed.
func pair(t testing.TB, network string) (client net.Conn, server *Conn) {
	t.Helper()
	client, inner := connect(t, network)
	server = NewSet(nobody{}).Add(inner)
	t.Cleanup(func() {
		client.Close()
		server.Close()
	})
	return client, server
}

func testCert(t testing.TB) tls.Certificate {
	t.Helper()
	cert, err := selfsigned.Certificate("usher.test")
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// eventually waits until cond holds. Where nothing announces a change, to look
// again and again is all that is left.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestConnConformance(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				client, server := pair(t, network)
				return client, server, func() { client.Close(); server.Close() }, nil
			})
		})
	}
	t.Run("memory", func(t *testing.T) {
		nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
			a, b := memnet.Pipe()
			c := NewSet(nobody{}).Add(b)
			return a, c, func() { a.Close(); c.Close() }, nil
		})
	})
}

// TestConnUnderTLS does what nettest.TestConn does as far as crypto/tls can: it
// gives a connection up after a write timeout, over net's own TCPConn as well.
func TestConnUnderTLS(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			client, server := pair(t, network)
			tc := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
			ts := tls.Server(server, &tls.Config{Certificates: []tls.Certificate{testCert(t)}})

			// Much, both ways at once.
			content := bytes.Repeat([]byte("usher under TLS "), 1<<16)
			var wg sync.WaitGroup
			for _, c := range []net.Conn{tc, ts} {
				wg.Go(func() {
					if _, err := c.Write(content); err != nil {
						t.Error(err)
					}
				})
				wg.Go(func() {
					got := make([]byte, len(content))
					if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, content) {
						t.Errorf("what was read differs: %v", err)
					}
				})
			}
			wg.Wait()

			// Deadlines, before and during a Read, and a Read after them.
			for range 3 {
				ts.SetReadDeadline(time.Unix(1, 0))
				if _, err := ts.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("past the deadline: %v", err)
				}
				ts.SetReadDeadline(time.Time{})
				got := make(chan error, 1)
				go func() {
					_, err := ts.Read(make([]byte, 1))
					got <- err
				}()
				eventually(t, "Read waits", func() bool { return server.State()&waiting != 0 })
				ts.SetReadDeadline(time.Unix(1, 0))
				if err := <-got; !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("deadline during a Read: %v", err)
				}
				ts.SetReadDeadline(time.Time{})
				tc.Write([]byte("x"))
				if _, err := ts.Read(make([]byte, 1)); err != nil {
					t.Errorf("after the deadlines: %v", err)
				}
			}

			// Half a close, and a close under a Read.
			tc.CloseWrite()
			if _, err := ts.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after the client's CloseWrite: %v, want EOF", err)
			}
			if _, err := ts.Write([]byte("still")); err != nil {
				t.Error(err)
			}
			got := make(chan error, 1)
			go func() {
				_, err := server.Read(make([]byte, 1))
				got <- err
			}()
			eventually(t, "Read waits", func() bool { return server.State()&waiting != 0 })
			ts.Close()
			if err := <-got; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Close under a Read: %v", err)
			}
		})
	}
}

func TestConnKeepsWhatTheInnerOneCan(t *testing.T) {
	client, server := pair(t, "tcp")
	if _, ok := server.NetConn().(*net.TCPConn); !ok {
		t.Errorf("NetConn returns a %T", server.NetConn())
	}
	if rc, err := server.SyscallConn(); err != nil || rc.Control(func(uintptr) {}) != nil {
		t.Errorf("SyscallConn: %v", err)
	}

	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content := strings.Repeat("usher", 10000)
	io.WriteString(f, content)
	f.Seek(0, io.SeekStart)
	if n, err := server.ReadFrom(f); n != int64(len(content)) || err != nil {
		t.Errorf("ReadFrom = %d, %v", n, err)
	}
	if err := server.CloseWrite(); err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
	if got, err := io.ReadAll(client); string(got) != content || err != nil {
		t.Errorf("the client read %d bytes, %v", len(got), err)
	}
	io.WriteString(client, content)
	client.Close()
	var buf bytes.Buffer
	if _, err := server.WriteTo(&buf); buf.String() != content || err != nil {
		t.Errorf("WriteTo: %d bytes, %v", buf.Len(), err)
	}
}

// bareConn has the methods of net.Conn and no other.
type bareConn struct{ net.Conn }

func TestConnAroundABareConn(t *testing.T) {
	a, b := memnet.Pipe()
	defer a.Close()
	set := NewSet(nobody{})
	c := set.Add(bareConn{b})
	if _, err := c.SyscallConn(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("SyscallConn: %v", err)
	}
	if err := c.CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("CloseWrite: %v", err)
	}
	if n, err := c.ReadFrom(strings.NewReader("hello")); n != 5 || err != nil {
		t.Errorf("ReadFrom = %d, %v", n, err)
	}
	io.WriteString(a, "world")
	a.CloseWrite()
	var buf bytes.Buffer
	if _, err := c.WriteTo(&buf); buf.String() != "world" || err != nil {
		t.Errorf("WriteTo: %q, %v", buf.String(), err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v, want net.ErrClosed", err)
	}
	if n, _ := set.Open(); n != 0 {
		t.Errorf("%d connections counted after Close", n)
	}
}

// TestConnErrors: net/http and others look into errors that used to be net's.
func TestConnErrors(t *testing.T) {
	client, server := pair(t, "tcp")
	server.SetReadDeadline(time.Unix(1, 0))
	_, err := server.Read(make([]byte, 1))
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != "read" || !oe.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past the deadline: %#v", err)
	}
	server.SetReadDeadline(time.Time{})
	client.(*net.TCPConn).SetLinger(0)
	client.Close()
	_, err = server.Read(make([]byte, 1))
	if !errors.As(err, &oe) || oe.Op != "read" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a reset: %#v", err)
	}
	server.Close()
	_, err = server.Read(make([]byte, 1))
	if !errors.As(err, &oe) || oe.Op != "read" || !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %#v", err)
	}
}

func TestReadDoesNotAllocate(t *testing.T) {
	client, server := pair(t, "tcp")
	buf := make([]byte, 16)
	out := []byte("0123456789abcdef")
	if n := testing.AllocsPerRun(100, func() {
		client.Write(out)
		io.ReadFull(server, buf)
	}); n != 0 {
		t.Errorf("%v allocations per write and read", n)
	}
}

// TestQuiet follows a connection through its life.
func TestQuiet(t *testing.T) {
	client, server := pair(t, "tcp")
	expect := func(want bool, when string) {
		t.Helper()
		eventually(t, when, func() bool {
			st := server.State()
			return st&waiting != 0 && st.Quiet() == want
		})
	}
	buf := make([]byte, 4096)
	read := func(p []byte) <-chan int {
		done := make(chan int, 1)
		go func() {
			n, _ := server.Read(p)
			done <- n
		}()
		return done
	}
	got := read(buf)
	expect(true, "new and silent: quiet")
	client.Write([]byte("GET / HTTP/1.1\r\n"))
	n := <-got
	got = read(buf[n:])
	expect(false, "half a header: not quiet")
	client.Write([]byte("Host: usher.test\r\n\r\n"))
	<-got

	server.Report(server, http.StateActive)
	got = read(buf[:1]) // net/http's background read
	if server.State().Quiet() {
		t.Error("quiet in a request")
	}
	client.Write([]byte("G"))
	<-got
	server.Report(server, http.StateIdle)
	server.SetReadDeadline(time.Time{})
	got = read(buf[1:]) // net/http has put the byte into its buffer
	expect(false, "a byte is ahead: not quiet")
	client.Write([]byte("ET"))
	<-got

	server.Report(server, http.StateActive)
	server.Report(server, http.StateIdle)
	server.SetReadDeadline(time.Time{})
	got = read(buf)
	expect(true, "idle: quiet")
	server.SetReadDeadline(time.Time{}) // net/http has seen the next request begin
	expect(false, "the second deadline: not quiet")

	server.Report(server, http.StateActive)
	server.Report(server, http.StateIdle)
	expect(true, "idle again: quiet")
	if !server.Retire() {
		t.Error("a quiet connection was not retired")
	}
	<-got
	if server.Retire() {
		t.Error("a connection was retired twice")
	}
}

// TestRetireSparesUnread: what waits in the kernel will be served.
func TestRetireSparesUnread(t *testing.T) {
	client, server := pair(t, "tcp")
	server.state.Store(uint32(waiting)) // as if a reader had gone to sleep
	client.Write([]byte("GET"))
	eventually(t, "the bytes arrive", server.Unread)
	if server.Retire() {
		t.Error("a connection with unread bytes was retired")
	}
}
