package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher"
	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/prefork"
	"golang.org/x/net/netutil"
)

var caddyReady = regexp.MustCompile(`serving initial configuration`)

// childEnv makes this program a server. Its value is a childSpec.
const childEnv = "USHER_LAB_SERVER"

// The kinds of server that this program can be.
const (
	limitListener   = "limit-listener"
	fastHTTP        = "fasthttp"
	fastHTTPPrefork = "fasthttp-prefork" // a socket for each worker
	fastHTTPShared  = "fasthttp-shared"  // one for all
)

// A childSpec is a server that this program can be.
type childSpec struct {
	Kind    string
	Addr    string        // a port of the system's choice if empty
	Limit   int           // of connections
	Workers int           // of the prefork kinds
	Term    bool          // the first request sends SIGTERM to this process
	CPU     time.Duration // that a request takes
}

func (c childSpec) text() string {
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // it has nothing that cannot be written
	}
	return string(text)
}

// grace is what servers have for their stop, as examples/server.
const grace = 25 * time.Second

// serveIfChild does not return in a process that was started as a server.
func serveIfChild() {
	text, ok := os.LookupEnv(childEnv)
	if !ok {
		return
	}
	var spec childSpec
	err := json.Unmarshal([]byte(text), &spec)
	if err == nil {
		err = spec.serve()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab: server:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (c childSpec) serve() error {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if c.Addr == "" {
		c.Addr = "127.0.0.1:0"
	}
	switch c.Kind {
	case limitListener:
		return c.serveLimitListener()
	case fastHTTP:
		return c.serveFastHTTP()
	case fastHTTPPrefork, fastHTTPShared:
		return c.serveFastHTTPPrefork()
	}
	return fmt.Errorf("there is no server %q", c.Kind)
}

var termOnce sync.Once

// term sends SIGTERM to this process on the first request, if it is told so.
func (c childSpec) term() {
	if !c.Term {
		return
	}
	termOnce.Do(func() {
		if p, err := os.FindProcess(os.Getpid()); err == nil {
			p.Signal(syscall.SIGTERM)
		}
	})
}

func (c childSpec) listening(l net.Listener) {
	slog.Info("listening", "addr", l.Addr().String(), "pid", os.Getpid())
}

// serveLimitListener is http.Server and its Shutdown, behind
// netutil.LimitListener.
func (c childSpec) serveLimitListener() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := usher.Listen("tcp", c.Addr) // as the others have it: no MPTCP
	if err != nil {
		return err
	}
	pid := strconv.Itoa(os.Getpid())
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.term()
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return // the client is gone
		}
		w.Header()["X-Pid"] = []string{pid}
		io.WriteString(w, "ok")
	})}
	c.listening(l)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(netutil.LimitListener(l, c.Limit)) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	return srv.Shutdown(ctx)
}

// fastServer returns a fasthttp server as its documentation recommends it to
// be stopped: with a bound for idle connections, and a header that says so.
func (c childSpec) fastServer() *fasthttp.Server {
	pid := strconv.Itoa(os.Getpid())
	return &fasthttp.Server{
		Handler: func(ctx *fasthttp.RequestCtx) {
			c.term()
			for end := time.Now().Add(c.CPU); c.CPU > 0 && time.Now().Before(end); {
			}
			ctx.Response.Header.Set("X-Pid", pid)
			ctx.WriteString("ok")
		},
		CloseOnShutdown: true,
		IdleTimeout:     5 * time.Second,
		Logger:          silent{},
	}
}

type silent struct{}

func (silent) Printf(string, ...any) {}

func (c childSpec) serveFastHTTP() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := usher.Listen("tcp", c.Addr)
	if err != nil {
		return err
	}
	srv := c.fastServer()
	c.listening(l)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	return srv.ShutdownWithContext(ctx)
}

// serveFastHTTPPrefork is a master and as many workers as GOMAXPROCS says.
func (c childSpec) serveFastHTTPPrefork() error {
	srv := c.fastServer()
	p := prefork.New(srv)
	p.Reuseport = c.Kind == fastHTTPPrefork
	p.RecoverThreshold = 1 << 30 // its default ends the service after one crash
	p.OnMasterDeath = func() { os.Exit(1) }
	p.ServeFunc = func(l net.Listener) error {
		c.listening(l)
		return srv.Serve(l)
	}
	return p.ListenAndServe(c.Addr)
}

// freeAddr returns an address that was free a moment ago, for peers that want
// to be told one.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
