// Server is a small HTTP server with every feature of usher behind a flag. It
// serves as an example, and to try things out:
//
//	go run ./examples/server -h
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher"
	"github.com/seed-235859eb/usher/prefork"
)

// build is set with -ldflags "-X main.build=…".
var build = "dev"

type config struct {
	addr               string
	latency, cpu       time.Duration
	slots, maxInline   int
	maxQueue           int
	maxWait            time.Duration
	maxConns           int
	delay              time.Duration
	handshakeGrace     time.Duration
	idleGrace, grace   time.Duration
	tls, h2c           bool
	workers            int
	bare               bool
	termOnFirstRequest bool
}

func main() {
	cfg, err := parse(os.Args[1:], os.Getenv, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(2)
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err := run(cfg); err != nil {
		slog.Error("server ended", "error", err)
		os.Exit(1)
	}
}

// parse reads the command line and $PORT.
func parse(args []string, getenv func(string) string, stderr io.Writer) (config, error) {
	var cfg config
	fs := flag.NewFlagSet("server", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&cfg.addr, "addr", ":8080", "address to listen on: host:port, unix:path, or systemd for the socket that it passed; $PORT wins when set")
	fs.DurationVar(&cfg.latency, "latency", 0, "time that / sleeps")
	fs.DurationVar(&cfg.cpu, "cpu", 0, "time that / computes")
	fs.IntVar(&cfg.slots, "slots", 0, "handlers that run at a time")
	fs.IntVar(&cfg.maxInline, "max-inline", 0, "consecutive requests of a connection while others wait")
	fs.IntVar(&cfg.maxQueue, "max-queue", 0, "requests that may wait for a slot")
	fs.DurationVar(&cfg.maxWait, "max-wait", 0, "time that a request may wait for a slot")
	fs.IntVar(&cfg.maxConns, "max-conns", 0, "connections open at a time")
	fs.DurationVar(&cfg.delay, "delay", 0, "lame duck: time between the signal and the drain")
	fs.DurationVar(&cfg.handshakeGrace, "handshake-grace", 0, "time for handshakes under way when the drain begins")
	fs.DurationVar(&cfg.idleGrace, "idle-grace", 0, "time that a connection may be silent during the drain")
	fs.DurationVar(&cfg.grace, "grace", 0, "time for the whole stop")
	fs.BoolVar(&cfg.tls, "tls", false, "speak TLS with a self-signed certificate made at the start")
	fs.BoolVar(&cfg.h2c, "h2c", false, "speak HTTP/2 without TLS, beside HTTP/1")
	fs.IntVar(&cfg.workers, "workers", 0, "worker processes; 0 serves in this one")
	fs.BoolVar(&cfg.bare, "bare", false, "do without usher: http.Server and its Shutdown, for comparison")
	fs.BoolVar(&cfg.termOnFirstRequest, "term-on-first-request", false, "send SIGTERM to this process, and to the master if there is one, when the first request arrives")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return cfg, err
		}
		return cfg, fmt.Errorf("bad flags: %w", err)
	}
	if fs.NArg() > 0 {
		return cfg, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if cfg.bare && cfg.workers > 0 {
		return cfg, fmt.Errorf("-workers=%d: not with -bare", cfg.workers)
	}
	var bad error
	fs.VisitAll(func(f *flag.Flag) {
		if strings.HasPrefix(f.Value.String(), "-") {
			bad = fmt.Errorf("-%s=%s: must not be negative", f.Name, f.Value)
		}
	})
	if bad != nil {
		return cfg, bad
	}
	// A server that never served stops at once, and says what is wrong with
	// its options.
	opts := cfg.options()
	opts.Logger = slog.New(slog.DiscardHandler)
	if err := usher.Wrap(&http.Server{}, opts).Shutdown(context.Background()); err != nil {
		return cfg, fmt.Errorf("-delay, -handshake-grace, -idle-grace and -grace do not fit together: %w", err)
	}
	if port := getenv("PORT"); port != "" {
		cfg.addr = ":" + port
	}
	return cfg, nil
}

func (cfg config) options() usher.Options {
	return usher.Options{
		Listener: usher.ListenerOptions{
			MaxConns:       cfg.maxConns,
			HandshakeGrace: cfg.handshakeGrace,
		},
		Fairness: usher.FairnessOptions{
			Slots:     cfg.slots,
			MaxInline: cfg.maxInline,
			MaxQueue:  cfg.maxQueue,
			MaxWait:   cfg.maxWait,
			Exempt:    isProbe,
		},
		Shutdown: usher.ShutdownOptions{
			Delay:       cfg.delay,
			IdleGrace:   cfg.idleGrace,
			GracePeriod: cfg.grace,
		},
	}
}

// isProbe says which requests are answered however long the queue is.
func isProbe(r *http.Request) bool {
	switch r.URL.Path {
	case "/healthz", "/readyz", "/stats", "/stream":
		return true
	}
	return false
}

func run(cfg config) error {
	switch {
	case cfg.bare:
		return runBare(cfg)
	case cfg.workers > 0 || cfg.addr == "systemd":
		opts := prefork.Options{Workers: cfg.workers, StopTimeout: cfg.stopTimeout()}
		if path, ok := strings.CutPrefix(cfg.addr, "unix:"); ok {
			opts.Listen = []prefork.Endpoint{{Network: "unix", Addr: path}}
		} else if cfg.addr != "systemd" {
			opts.Addr = cfg.addr
		}
		return prefork.Run(context.Background(), opts, func(ctx context.Context, w *prefork.Worker) error {
			return serve(ctx, cfg, w, w.Listener())
		})
	}
	l, err := listen(cfg.addr, usher.Listen)
	if err != nil {
		return err
	}
	return serve(context.Background(), cfg, nil, l)
}

// stopTimeout leaves a worker the time that its own graces take.
func (cfg config) stopTimeout() time.Duration {
	if cfg.grace == 0 {
		return 0
	}
	return cfg.grace*11/10 + 2*time.Second
}

// serve serves l, in a worker if w is not nil, until the server has stopped.
func serve(ctx context.Context, cfg config, w *prefork.Worker, l net.Listener) error {
	app, srv, err := newServer(cfg)
	if err != nil {
		return err
	}
	defer app.cleanUp()
	app.worker = w
	s := usher.Wrap(srv, cfg.options())
	app.mux.Handle("/readyz", s.Ready())
	app.mux.HandleFunc("/stats", func(rw http.ResponseWriter, r *http.Request) { app.writeStats(rw, r, s.Stats()) })
	// By the time this is called, signals are caught.
	srv.BaseContext = func(l net.Listener) context.Context {
		slog.Info("listening", "addr", l.Addr().String(), "pid", os.Getpid(), "build", build)
		return context.Background()
	}
	return s.Run(ctx, l)
}

func newServer(cfg config) (*app, *http.Server, error) {
	app := newApp(cfg)
	srv := &http.Server{Handler: app.mux}
	if cfg.tls {
		cert, err := selfSigned()
		if err != nil {
			return nil, nil, err
		}
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
	}
	if cfg.h2c {
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetHTTP2(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
	}
	return app, srv, nil
}

// runBare is what a careful program does without usher.
func runBare(cfg config) error {
	app, srv, err := newServer(cfg)
	if err != nil {
		return err
	}
	defer app.cleanUp()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := listen(cfg.addr, net.Listen)
	if err != nil {
		return err
	}
	slog.Info("listening", "addr", l.Addr().String(), "pid", os.Getpid(), "build", build, "bare", true)
	served := make(chan error, 1)
	go func() {
		if cfg.tls {
			served <- srv.ServeTLS(l, "", "")
		} else {
			served <- srv.Serve(l)
		}
	}()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	grace := cfg.grace
	if grace == 0 {
		grace = 25 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	return srv.Shutdown(ctx)
}

func listen(addr string, listen func(network, address string) (net.Listener, error)) (net.Listener, error) {
	if len(addr) > 5 && addr[:5] == "unix:" {
		return listen("unix", addr[5:])
	}
	return listen("tcp", addr)
}
