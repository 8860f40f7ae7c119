//go:build unix

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// get sends a request on a connection of its own.
func get(t *testing.T, addr, path string) (status int, body string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: usher.test\r\nConnection: close\r\n\r\n", path)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestSignals sends signals to a server with a long Delay and a silent
// connection: it must end by what the signals say, not by its graces, which are
// longer than the test waits for anything.
func TestSignals(t *testing.T) {
	for _, tt := range []struct {
		name    string
		signals []syscall.Signal
		clean   bool
		want    string
	}{
		{"SIGINT skips delay and idle grace", []syscall.Signal{syscall.SIGINT}, true, " idle=[1-9]"},
		{"the second cuts the lame duck short", []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}, true, " idle=0"},
		{"the third ends at once", []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGINT}, false, " cut=[1-9]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, "-delay", "10m", "-idle-grace", "10m", "-grace", "1h")
			silent, err := net.Dial("tcp", p.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer silent.Close()
			for !strings.Contains(stats(t, p.addr), `"new": 1`) {
				time.Sleep(time.Millisecond)
			}
			for i, sig := range tt.signals {
				p.signal(sig)
				p.await(t, []string{"usher: stopping", "usher: second signal", "usher: signal ends everything"}[i])
			}
			if tt.clean && len(tt.signals) == 2 {
				// Only IdleGrace is left to wait for.
				awaitRefusal(p.addr)
				silent.Close()
			}
			err = p.wait()
			if (err == nil) != tt.clean {
				t.Errorf("the server ended with %v", err)
			}
			if !regexp.MustCompile(tt.want).MatchString(p.output()) {
				t.Errorf("the report does not say %s", tt.want)
			}
		})
	}
}

// TestSignalBurst: SIGTERM many times within a second is one wish to stop.
func TestSignalBurst(t *testing.T) {
	t.Parallel()
	p := start(t, "-delay", "10m", "-idle-grace", "10m", "-grace", "1h")
	p.signal(syscall.SIGTERM)
	p.await(t, "usher: stopping")
	for range 20 {
		p.signal(syscall.SIGTERM)
		time.Sleep(time.Millisecond) // the kernel makes one of those that meet
	}
	p.signal(syscall.SIGINT)
	p.await(t, "usher: second signal")
	if err := p.wait(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
	if strings.Contains(p.output(), "usher: signal ends everything") {
		t.Error("the burst counted as many")
	}
}

// awaitRefusal dials until nobody listens any more.
func awaitRefusal(addr string) {
	for {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		c.Close()
	}
}

func stats(t *testing.T, addr string) string {
	t.Helper()
	_, body := get(t, addr, "/stats")
	return body
}

// TestPaths asks for everything that the server offers.
func TestPaths(t *testing.T) {
	p := start(t)
	for path, want := range map[string]string{"/": "ok", "/healthz": "ok\n", "/readyz": "ready\n"} {
		if status, body := get(t, p.addr, path); status != 200 || body != want {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if _, body := get(t, p.addr, "/file"); len(body) != fileSize {
		t.Errorf("/file: %d bytes", len(body))
	}
	var st struct {
		Phase    string
		Accepted int
	}
	if err := json.Unmarshal([]byte(stats(t, p.addr)), &st); err != nil || st.Phase != "serving" || st.Accepted == 0 {
		t.Errorf("/stats: %+v, %v", st, err)
	}
	resp, err := http.Post("http://"+p.addr+"/upload", "text/plain", strings.NewReader("12345"))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if string(b) != "5\n" {
		t.Errorf("/upload: %q", b)
	}

	// A stream and a hijacked connection are told of the drain, and end.
	stream, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	fmt.Fprint(stream, "GET /stream HTTP/1.1\r\nHost: usher.test\r\n\r\n")
	sr := bufio.NewReader(stream)
	echo, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	fmt.Fprint(echo, "GET /echo HTTP/1.1\r\nHost: usher.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello\n")
	er := bufio.NewReader(echo)
	for line := ""; line != "hello\n"; {
		if line, err = er.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	for line := ""; !strings.HasPrefix(line, "data: 0"); {
		if line, err = sr.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	p.signal(syscall.SIGTERM)
	if rest, err := io.ReadAll(er); err != nil || len(rest) > 0 {
		t.Errorf("/echo at the end: %q, %v", rest, err)
	}
	resp, err = http.ReadResponse(bufio.NewReader(io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), bytes.NewReader(nil), afterData(sr))), nil)
	if err != nil {
		t.Fatal(err)
	}
	echo.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(b), "event: bye") {
		t.Errorf("/stream at the end: %q, %v", b, err)
	}
	stream.Close()
	if err := p.wait(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(p.output(), "hijacked=1") {
		t.Error("the report does not count the hijacked connection")
	}
}

// afterData puts a reader that is after "data: 0\n" of a chunk at the
// beginning of the next chunk.
func afterData(r *bufio.Reader) io.Reader {
	r.ReadString('\n') // the event's empty line
	r.ReadString('\n') // the chunk's end
	return r
}

// TestBadFlags: status 2, and a line that names the flag.
func TestBadFlags(t *testing.T) {
	binary, err := serverBinary()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ args, want string }{
		{"-latency x", "-latency"},
		{"-nonsense", "-nonsense"},
		{"-slots -5", "-slots=-5: must not be negative"},
		{"-workers -1", "-workers=-1: must not be negative"},
		{"-workers 2 -bare", "-workers=2: not with -bare"},
		{"-max-conns -1", "-max-conns=-1: must not be negative"},
		{"-delay -1s", "-delay=-1s: must not be negative"},
		{"-idle-grace 1h", "IdleGrace is 1h0m0s"},
		{"extra", `unexpected argument "extra"`},
	} {
		out, err := exec.Command(binary, append([]string{"-addr", "127.0.0.1:0"}, strings.Fields(tt.args)...)...).CombinedOutput()
		if ee, ok := err.(*exec.ExitError); !ok || ee.ExitCode() != 2 || !strings.Contains(string(out), tt.want) {
			t.Errorf("%s: %v, %s", tt.args, err, out)
		}
	}
	if out, err := exec.Command(binary, "-h").CombinedOutput(); err != nil || !strings.Contains(string(out), "-term-on-first-request") {
		t.Errorf("-h: %v\n%s", err, out)
	}
}
