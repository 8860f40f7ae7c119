package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestReadHead(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nDate: today\r\nContent-Length: 2\r\n\r\n"
	for _, tt := range []struct {
		name, resp string
		size       int64
		err        string
	}{
		{"whole", head + "ok", int64(len(head)) + 2, ""},
		{"long body", strings.Replace(head, "2\r\n\r\n", "123456789\r\n\r\n", 1) + "…", int64(len(head)) + 8 + 123456789, ""},
		{"another status", "HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", 0, "not a 200"},
		{"no length", "HTTP/1.1 200 OK\r\n\r\nok", 0, "not a 200 with a Content-Length"},
		{"cut short", head[:20], 0, "EOF"},
		{"too long", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 4096), 0, "too long"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(tt.resp), iotest.OneByteReader(strings.NewReader(tt.resp))} {
				_, size, err := readHead(r, make([]byte, 4096))
				switch {
				case tt.err == "" && (err != nil || size != tt.size):
					t.Errorf("size %d, error %v; want %d", size, err, tt.size)
				case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
					t.Errorf("error %v, want %q", err, tt.err)
				}
			}
		})
	}
}

func TestDialLoopbackOnly(t *testing.T) {
	if _, err := dial("192.0.2.1:80"); err == nil || !strings.Contains(err.Error(), "not a loopback address") {
		t.Errorf("error is %v", err)
	}
}

func TestWorkers(t *testing.T) {
	body := bytes.Repeat([]byte("usher\n"), 1<<18)
	mux := http.NewServeMux()
	mux.HandleFunc("/", answerOK)
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "file.txt", time.Time{}, bytes.NewReader(body))
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() {
		srv.Close()
		<-served
	}()
	for _, tt := range []struct {
		name string
		open dialWorker
		min  int64
	}{
		{"keep-alive", openKeepAlive, 1},
		{"closing", openClosing, 1},
		{"file", openFile, int64(len(body))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, err := tt.open(l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			for range 3 {
				// A file's header counts as well.
				if n, err := w.do(); err != nil || n < tt.min || n > tt.min+4096 {
					t.Errorf("%d units, error %v; want %d", n, err, tt.min)
				}
			}
		})
	}
}
