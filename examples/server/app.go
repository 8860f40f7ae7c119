package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher"
	"github.com/seed-235859eb/usher/prefork"
)

// app holds the handlers.
type app struct {
	cfg     config
	worker  *prefork.Worker // nil without -workers
	mux     *http.ServeMux
	pid     string
	started time.Time
	term    sync.Once
	bigFile func() (name string, err error)
	made    atomic.Bool // bigFile has been called
}

const fileSize = 16 << 20

func newApp(cfg config) *app {
	a := &app{cfg: cfg, mux: http.NewServeMux(), pid: strconv.Itoa(os.Getpid()), started: time.Now()}
	a.bigFile = sync.OnceValues(func() (string, error) {
		a.made.Store(true)
		return makeBigFile()
	})
	a.mux.HandleFunc("/", a.root)
	a.mux.HandleFunc("/upload", a.upload)
	a.mux.HandleFunc("/stream", a.stream)
	a.mux.HandleFunc("/echo", a.echo)
	a.mux.HandleFunc("/file", a.file)
	a.mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok\n") })
	return a
}

// root reads the body and answers ok.
func (a *app) root(w http.ResponseWriter, r *http.Request) {
	if a.cfg.termOnFirstRequest {
		a.term.Do(func() {
			pids := []int{os.Getpid()}
			if a.worker != nil {
				pids = []int{os.Getppid(), os.Getpid()} // the master first
			}
			for _, pid := range pids {
				if p, err := os.FindProcess(pid); err == nil {
					p.Signal(syscall.SIGTERM)
				}
			}
		})
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // the client is gone
	}
	if a.cfg.latency > 0 {
		time.Sleep(a.cfg.latency)
	}
	for end := time.Now().Add(a.cfg.cpu); a.cfg.cpu > 0 && time.Now().Before(end); {
	}
	h := w.Header()
	h["X-Pid"] = []string{a.pid}
	h["X-Generation"] = []string{a.generation()}
	h["X-Build"] = []string{build}
	if a.cfg.slots > 0 {
		h["X-Queue-Wait"] = []string{usher.QueueWait(r.Context()).String()}
	}
	io.WriteString(w, "ok")
}

// generation is 0 in a program without a master.
func (a *app) generation() string {
	if a.worker == nil {
		return "0"
	}
	return strconv.Itoa(a.worker.Generation())
}

// writeStats writes the numbers of this process and, from the master, of all.
func (a *app) writeStats(w http.ResponseWriter, r *http.Request, own usher.Stats) {
	all := struct {
		usher.Stats
		Fleet *prefork.Stats `json:"fleet,omitempty"`
	}{Stats: own}
	if a.worker != nil {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if fleet, err := a.worker.Fleet(ctx); err == nil {
			all.Fleet = &fleet
		}
	}
	writeJSON(w, all)
}

// upload reads the body and answers its length.
func (a *app) upload(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintln(w, n)
}

// stream sends an event each 100 ms until the client leaves or the server
// drains.
func (a *app) stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		fmt.Fprintf(w, "data: %d\n\n", n)
		if rc.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-usher.Draining(r.Context()):
			io.WriteString(w, "event: bye\ndata: reconnect\n\n")
			return
		case <-r.Context().Done():
			return
		}
	}
}

// echo takes the connection over and sends each line back, until the client
// closes it or the server drains.
func (a *app) echo(w http.ResponseWriter, r *http.Request) {
	draining := usher.Draining(r.Context())
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "cannot take over this connection: "+err.Error(), http.StatusNotImplemented)
		return
	}
	defer conn.Close()
	fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-draining:
			// Wakes the read below, after the line that is under way.
			conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		case <-over:
		}
	}()
	for {
		line, err := rw.ReadBytes('\n')
		if _, werr := conn.Write(line); err != nil || werr != nil {
			return
		}
	}
}

// file serves 16 MiB from a file, which the first request makes.
func (a *app) file(w http.ResponseWriter, r *http.Request) {
	name, err := a.bigFile()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	f, err := os.Open(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	http.ServeContent(w, r, "file.txt", a.started, f)
}

// makeBigFile writes the file that /file serves.
func makeBigFile() (name string, err error) {
	f, err := os.CreateTemp("", "usher-file-*")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := bytes.Repeat([]byte("usher\n"), 1<<10)
	for left := fileSize; left > 0; {
		n, err := f.Write(block[:min(left, len(block))])
		if err != nil {
			return f.Name(), err
		}
		left -= n
	}
	return f.Name(), nil
}

// cleanUp removes what the handlers left behind.
func (a *app) cleanUp() {
	if a.made.Load() {
		if name, _ := a.bigFile(); name != "" {
			os.Remove(name)
		}
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v)
}

// selfSigned makes a certificate for localhost.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "localhost"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
