//go:build unix

package prefork

import (
	"bufio"
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
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher"
)

// A plan is what a build of the program under test does. It is at the end of the
// executable file, so that old and new code are told apart by the file that runs,
// as ever, and not by what is at its path.
type plan struct {
	Build   string
	Workers int
	Addr    string
	Listen  []planEndpoint
	Dir     string
	PIDFile string
	LogFile string
	User    string
	Group   string
	Chdir   string // main goes there before Run
	TLS     bool

	BootTimeout, FirstBootTimeout, HeartbeatTimeout, StopTimeout, Probation, Canary, CrashWindow time.Duration
	MaxSurge, MaxCrashes                                                                         int
	Recycle                                                                                      RecycleOptions

	Before     *planExit // main ends before it comes to Run
	HangBefore bool      // or hangs
	LogTo      string    // file; standard error if empty
	LogAtEnd   bool      // main writes to standard error when Run has returned

	Seat       *int          // which the following is about; nil means all
	Boot       *planExit     // the function ends the process at once
	BootUntil  string        // unless this file exists
	NeverReady bool          // it does not serve
	NoUsher    bool          // it is ready, and serves and stops by nobody's leave
	If         string        // file that must exist for NeverReady
	Dies       *planExit     // it dies when it has served for DiesAfter
	DiesAfter  time.Duration // see Dies
	Latency    time.Duration // of a request
	Delay      time.Duration // of a stop
	Health     string        // fail, hang or panic
	Deaf       bool          // it takes no notice of the end of its context

	DumpGrace, HookTimeout time.Duration
	WaitBefore             string // file for which main waits before Run, in a master that another has executed

	HookPanics, HookHangs string // name of a hook
	CanaryCheck           string // ok, fail, hang or panic; empty for none
}

type planExit struct {
	Status int
	Output string
}

type planEndpoint struct {
	Name, Network, Addr string
	Own                 bool // the program listens
}

// An event is what the program under test says on standard output: what its
// hooks were told, and answers to commands.
type event struct {
	Name       string
	PID        int // of the worker, or the master
	Seat       int
	Generation int
	Addr       []string
	GOMAXPROCS int

	Class        Class
	Code, Signal int
	Output       string
	WasReady     bool

	Answer       int // to a command
	Err          string
	RestartError *planRestartError
	Stats        *Stats
	Goroutines   int
}

type planRestartError struct {
	Generation, Seat, BackOn int
	TakenBack                bool
	Class                    Class
	Code                     int
	Output                   string
}

// A command comes to the master on standard input, whose end ends it.
type command struct {
	Number int
	Do     string
	N      int
}

// planMark is between the test binary and the plan.
const planMark = "\n-- plan --\n"

// readPlan returns the plan of the program that runs.
func readPlan() (plan, error) {
	var p plan
	file := "/proc/self/exe"
	if _, err := os.Stat(file); err != nil {
		if file, err = os.Executable(); err != nil {
			return p, err
		}
	}
	f, err := os.Open(file)
	if err != nil {
		return p, err
	}
	defer f.Close()
	const size = 64 << 10
	if _, err := f.Seek(-size, io.SeekEnd); err != nil {
		return p, err
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return p, err
	}
	at := strings.LastIndex(string(b), planMark)
	if at < 0 {
		return p, fmt.Errorf("no plan in %s", file)
	}
	return p, json.Unmarshal(b[at+len(planMark):], &p)
}

// testProgram is the main function of the program under test.
func testProgram() int {
	p, err := readPlan()
	if err != nil {
		fmt.Fprintln(os.Stderr, "plan:", err)
		return 2
	}
	if p.Before != nil {
		return p.Before.end()
	}
	if p.HangBefore {
		select {}
	}
	if p.Chdir != "" {
		if err := os.Chdir(p.Chdir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
	}
	if os.Getenv(masterEnv) != "" && p.WaitBefore != "" {
		say(event{Name: "before Run"})
		for !exists(p.WaitBefore) {
			time.Sleep(5 * time.Millisecond)
		}
	}
	dumpGrace, hookTimeout, strangerAge = p.DumpGrace, p.HookTimeout, 2*p.HookTimeout
	var out io.Writer = os.Stderr
	if p.LogTo != "" {
		f, err := os.OpenFile(p.LogTo, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			fmt.Fprintln(os.Stderr, "log:", err)
			return 2
		}
		out = f
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(out, nil)))
	opts, err := p.options()
	if err != nil {
		fmt.Fprintln(os.Stderr, "options:", err)
		return 2
	}
	err = Run(context.Background(), opts, p.serve)
	if p.LogAtEnd {
		fmt.Fprintln(os.Stderr, "program: the end")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "program:", err)
		if _, ok := errors.AsType[*GiveUpError](err); ok {
			return 4
		}
		if _, ok := errors.AsType[*StopError](err); ok {
			return 5
		}
		return 1
	}
	return 0
}

func (e *planExit) end() int {
	fmt.Fprintln(os.Stderr, e.Output)
	return e.Status
}

func (p plan) options() (Options, error) {
	o := Options{
		Workers: p.Workers, Addr: p.Addr, Dir: p.Dir, PIDFile: p.PIDFile, LogFile: p.LogFile, User: p.User, Group: p.Group,
		BootTimeout: p.BootTimeout, FirstBootTimeout: p.FirstBootTimeout, HeartbeatTimeout: p.HeartbeatTimeout, StopTimeout: p.StopTimeout,
		Probation: p.Probation, Canary: p.Canary, CrashWindow: p.CrashWindow,
		MaxSurge: p.MaxSurge, MaxCrashes: p.MaxCrashes, Recycle: p.Recycle,
	}
	for _, e := range p.Listen {
		end := Endpoint{Name: e.Name, Network: e.Network, Addr: e.Addr}
		if e.Own {
			end.Open = func() (net.Listener, error) { return usher.Listen(e.Network, e.Addr) }
		}
		o.Listen = append(o.Listen, end)
	}
	if p.Health != "" {
		o.Health = func(ctx context.Context) error {
			switch p.Health {
			case "hang":
				select {}
			case "panic":
				panic("health panics")
			case "fail":
				return errors.New("no database")
			}
			return nil
		}
	}
	if p.CanaryCheck != "" {
		o.CanaryCheck = func(ctx context.Context, w WorkerStats) error {
			say(event{Name: "CanaryCheck", PID: w.PID, Seat: w.Seat, Generation: w.Generation})
			switch p.CanaryCheck {
			case "hang":
				select {}
			case "panic":
				panic("canary panics")
			case "fail":
				return errors.New("the bird has fallen silent")
			}
			return nil
		}
	}
	o.Hooks = p.hooks()
	return o, nil
}

var sayMu sync.Mutex

func say(e event) {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	sayMu.Lock()
	defer sayMu.Unlock()
	os.Stdout.Write(append(b, '\n')) // to a pipe, in one piece if it is short
}

func (p plan) hooks() Hooks {
	hook := func(e event) {
		say(e)
		switch e.Name {
		case p.HookPanics:
			panic("a hook panics")
		case p.HookHangs:
			select {}
		}
	}
	info := func(name string) func(context.Context, WorkerInfo) {
		return func(_ context.Context, w WorkerInfo) {
			hook(event{Name: name, Seat: w.Seat, Generation: w.Generation, PID: w.PID})
		}
	}
	return Hooks{
		MasterStart: func(_ context.Context, m *Master) {
			e := event{Name: "MasterStart", PID: os.Getpid(), GOMAXPROCS: runtime.GOMAXPROCS(0)}
			for _, end := range m.sockets.endpoints {
				e.Addr = append(e.Addr, end.group.Addr().String())
			}
			go obey(m)
			hook(e)
		},
		BeforeWorkerStart: info("BeforeWorkerStart"),
		AfterWorkerStart:  info("AfterWorkerStart"),
		WorkerReady:       info("WorkerReady"),
		WorkerExit: func(_ context.Context, e WorkerExit) {
			hook(event{
				Name: "WorkerExit", Seat: e.Seat, Generation: e.Generation, PID: e.PID,
				Class: e.Class, Code: e.Code, Signal: e.Signal, Output: e.Output, WasReady: e.WasReady, Err: e.Error(),
			})
		},
		RestartFinished: func(_ context.Context, generation int, err error) {
			hook(answer(event{Name: "RestartFinished", Generation: generation}, err))
		},
	}
}

func answer(e event, err error) event {
	if err == nil {
		return e
	}
	e.Err = err.Error()
	if r, ok := errors.AsType[*RestartError](err); ok {
		e.RestartError = &planRestartError{Generation: r.Generation, Seat: r.Seat, BackOn: r.BackOn, TakenBack: r.TakenBack}
		if r.Exit != nil {
			e.RestartError.Class, e.RestartError.Code, e.RestartError.Output = r.Exit.Class, r.Exit.Code, r.Exit.Output
		}
	}
	return e
}

// obey carries out commands, each in a goroutine of its own. The tests' death
// is the end of standard input.
func obey(m *Master) {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var c command
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			continue
		}
		go func() {
			e := event{Name: "answer", Answer: c.Number, PID: os.Getpid()}
			var err error
			switch c.Do {
			case "restart":
				err = m.Restart(context.Background())
			case "upgrade":
				err = m.Upgrade(context.Background())
			case "scale":
				err = m.Scale(c.N)
			case "reopen":
				err = m.ReopenLog()
			case "recycle":
				err = m.Recycle(c.N)
			case "stats":
				var s Stats
				s, err = m.Stats()
				e.Stats = &s
			case "goroutines":
				e.Goroutines = runtime.NumGoroutine()
			case "child": // of user code in the master
				err = exec.Command("sh", "-c", "exit 7").Run()
			case "late child":
				cmd := exec.Command("sh", "-c", "exit 7")
				if err = cmd.Start(); err == nil {
					time.Sleep(strangerAge / 4)
					err = cmd.Wait()
				}
			case "orphan": // whose parent does not wait for it
				err = exec.Command("sh", "-c", "sh -c 'sleep 0.1; exit 9' & echo").Run()
			}
			say(answer(e, err))
		}()
	}
	os.Exit(3)
}

// serve is the function of each worker.
func (p plan) serve(ctx context.Context, w *Worker) error {
	about := p.Seat == nil || *p.Seat == w.Seat()
	if _, err := os.Stat(p.If); p.If != "" && err != nil {
		p.NeverReady = false
	}
	switch {
	case about && p.Boot != nil && !exists(p.BootUntil):
		os.Exit(p.Boot.end())
	case about && p.NeverReady && p.Deaf:
		fmt.Fprintln(os.Stderr, "not ready, ever")
		select {}
	case about && p.NeverReady:
		fmt.Fprintln(os.Stderr, "not ready, ever")
		<-ctx.Done()
		return nil
	}
	if p.NoUsher {
		w.Ready()
		return http.Serve(w.Listener(), http.NotFoundHandler())
	}
	a := &planApp{plan: p, w: w}
	srv := &http.Server{
		Handler: a,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			if a.hung.Load() {
				select {}
			}
			return ctx
		},
		BaseContext: func(l net.Listener) context.Context {
			say(event{Name: "listening", PID: os.Getpid(), Seat: w.Seat(), Generation: w.Generation(), Addr: []string{l.Addr().String()}})
			if about && p.Dies != nil {
				time.AfterFunc(p.DiesAfter, func() { os.Exit(p.Dies.end()) })
			}
			return context.Background()
		},
	}
	if p.TLS {
		cert, err := selfSigned()
		if err != nil {
			return err
		}
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
	}
	s := usher.Wrap(srv, usher.Options{
		Listener: usher.ListenerOptions{HandshakeGrace: 50 * time.Millisecond},
		Shutdown: usher.ShutdownOptions{Delay: p.Delay, IdleGrace: 8 * time.Second, GracePeriod: p.Delay + 20*time.Second},
	})
	var all []net.Listener
	for _, l := range w.Listeners() {
		all = append(all, l)
	}
	return s.Run(ctx, all...)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// planApp is what the workers serve.
type planApp struct {
	plan
	w    *Worker
	hung atomic.Bool
}

func (a *planApp) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	h := rw.Header()
	h["X-Build"] = []string{a.Build}
	h["X-Pid"] = []string{strconv.Itoa(os.Getpid())}
	h["X-Seat"] = []string{strconv.Itoa(a.w.Seat())}
	h["X-Generation"] = []string{strconv.Itoa(a.w.Generation())}
	io.Copy(io.Discard, r.Body)
	n, _ := strconv.Atoi(r.FormValue("n"))
	switch r.URL.Path {
	case "/":
		time.Sleep(a.Latency)
	case "/slow": // n ms
		say(event{Name: "slow", PID: os.Getpid(), Seat: a.w.Seat()})
		time.Sleep(time.Duration(n) * time.Millisecond)
	case "/hang": // the accept loop
		a.hung.Store(true)
	case "/spin":
		say(event{Name: "spin", PID: os.Getpid(), Seat: a.w.Seat()})
		for i := 0; ; i++ {
		}
	case "/exit":
		fmt.Fprintln(os.Stderr, "exit as asked")
		os.Exit(n)
	case "/panic":
		go panic("a goroutine panics")
		select {}
	case "/stderr": // n KiB
		line := strings.Repeat("x", 1023) + "\n"
		for range n {
			io.WriteString(os.Stderr, line)
		}
	case "/lines": // n of each kind, at once
		writeLines(r.FormValue("who"), n)
	case "/helper": // writes to standard error as soon as a file exists
		cmd := exec.Command("sh", "-c", `while [ ! -e "$0" ]; do sleep 0.05; done; echo helper speaks >&2; echo helper speaks again >&2`, r.FormValue("file"))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
	case "/file": // its content
		b, err := os.ReadFile(r.FormValue("name"))
		if err == nil {
			_, err = os.Getwd()
		}
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		rw.Write(b)
		return
	case "/env":
		own := os.Environ()
		child, err := exec.Command("env").Output()
		var open []byte
		if err == nil {
			open, err = exec.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
		}
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		json.NewEncoder(rw).Encode(map[string]any{
			"own": own, "child": strings.Split(strings.TrimSpace(string(child)), "\n"), "procs": runtime.GOMAXPROCS(0), "open": string(open),
		})
		return
	case "/ids":
		groups, err := os.Getgroups()
		fmt.Fprintln(rw, os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid(), groups, err)
		return
	case "/names":
		var names []string
		for name, l := range a.w.Listeners() {
			names = append(names, name+" "+l.Addr().String())
		}
		slices.Sort(names)
		json.NewEncoder(rw).Encode(names)
		return
	case "/fleet":
		s, err := a.w.Fleet(r.Context())
		if err != nil {
			http.Error(rw, err.Error(), http.StatusServiceUnavailable)
			return
		}
		json.NewEncoder(rw).Encode(s)
		return
	}
	io.WriteString(rw, "ok")
}

// lineSizes are of the lines that writeLines writes, each with one Write.
var lineSizes = []int{200, 3000, 60_000}

// writeLines writes n lines of each size, as lineOf makes them.
func writeLines(who string, n int) {
	for i := range n {
		for _, size := range lineSizes {
			io.WriteString(os.Stderr, lineOf(who, i, size)+"\n")
		}
	}
}

func lineOf(who string, i, size int) string {
	line := fmt.Sprintf("line %s %d %d ", who, i, size)
	return line + strings.Repeat("x", size-len(line))
}

// selfSigned makes a certificate.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "usher.test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
