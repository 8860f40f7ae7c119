//go:build unix

package recipes

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/process"
	"github.com/seed-235859eb/usher/internal/traffic"
)

func TestRouters(t *testing.T) {
	for _, name := range []string{"servemux", "chi", "gin", "echo"} {
		t.Run(name, func(t *testing.T) {
			stopUnderHTTP(t, func(t *testing.T) *process.Process {
				p := start(t, name)
				checkReady(t, p.Addr)
				return p
			}, traffic.Config{Body: "body"})
		})
	}
}

// TestPrograms: those that somebody else runs.
func TestPrograms(t *testing.T) {
	for _, name := range []string{"errgroup", "fx"} {
		t.Run(name, func(t *testing.T) {
			stopUnderHTTP(t, func(t *testing.T) *process.Process { return start(t, name) }, traffic.Config{})
		})
	}
}

func TestReverseProxy(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Millisecond)
		io.Copy(w, r.Body)
	}))
	defer backend.Close()
	stopUnderHTTP(t, func(t *testing.T) *process.Process {
		return start(t, "reverseproxy", "BACKEND="+backend.URL)
	}, traffic.Config{Body: "body"})
}

// TestAdmin: the second server answers while the first one drains.
func TestAdmin(t *testing.T) {
	newAdmin := func(t *testing.T) (p *process.Process, admin string) {
		admin = reserve(t)
		return start(t, "admin", "ADMIN_ADDR="+admin), "http://" + admin
	}
	stopUnderHTTP(t, func(t *testing.T) *process.Process {
		p, _ := newAdmin(t)
		return p
	}, traffic.Config{})

	p, admin := newAdmin(t)
	if got := getStatus(t, admin+"/readyz"); got != http.StatusOK {
		t.Errorf("/readyz answers %d", got)
	}
	// The drain waits for a request of which it has the beginning.
	c, err := net.Dial("tcp", p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(c)
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: usher.test\r\n\r\n")
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	} else {
		io.Copy(io.Discard, resp.Body)
	}
	fmt.Fprint(c, "GET / HTTP/1.1\r\n")
	p.Signal(syscall.SIGTERM)
	if _, err := p.Await(t.Context(), stopping, 1); err != nil {
		t.Fatal(err)
	}
	if got := getStatus(t, admin+"/readyz"); got != http.StatusServiceUnavailable {
		t.Errorf("in the drain /readyz answers %d", got)
	}
	if got := getStatus(t, admin+"/debug/pprof/"); got != http.StatusOK {
		t.Errorf("in the drain /debug/pprof/ answers %d", got)
	}
	fmt.Fprint(c, "Host: usher.test\r\n\r\n")
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || !resp.Close {
		t.Errorf("the last request is answered with %s, Connection: %v", resp.Status, resp.Header["Connection"])
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}

// TestSSE: each stream ends as a whole response.
func TestSSE(t *testing.T) {
	p := start(t, "sse")
	checkReady(t, p.Addr)
	stopUnderLoad(t, p, func(n *tally) func() bool {
		client := &http.Client{Transport: &http.Transport{}, Timeout: patience}
		resp, err := client.Get("http://" + p.Addr + "/events")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.CloseIdleConnections)
		lines := bufio.NewScanner(resp.Body)
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), "retry: ") {
			t.Errorf("a stream begins with %q", lines.Text())
		}
		return func() bool {
			for lines.Scan() {
				if strings.HasPrefix(lines.Text(), "data: ") {
					n.answered.Add(1)
					return true
				}
			}
			if err := lines.Err(); err != nil {
				n.lose(err)
			}
			resp.Body.Close()
			return false
		}
	})
}
