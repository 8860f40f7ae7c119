//go:build unix

package prefork

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
)

var verbose = flag.Bool("prefork.log", false, "show what the program under test logs")

// patience is far above any wait of a test that passes.
const patience = 60 * time.Second

// running is a program under test.
type running struct {
	t       *testing.T
	cmd     *exec.Cmd
	plan    plan
	file    string // the program
	network string
	addr    string
	stdin   *os.File

	status chan error // of the first process, once
	left   chan struct{}

	paused chan struct{} // has an element while nobody reads the log
	unread bool          // the test has paused the reading

	mu     sync.Mutex
	wake   chan struct{} // closed and made anew with each change
	events []event
	log    []string
	asked  int
}

// quick is a plan of n workers that does not wait for what tests do not need.
func quick(n int) plan {
	return plan{
		Build: "one", Workers: n, Addr: "127.0.0.1:0",
		DumpGrace: time.Second, HookTimeout: time.Second,
		Probation: 50 * time.Millisecond, StopTimeout: patience / 2, BootTimeout: patience / 2, HeartbeatTimeout: patience / 2,
	}
}

// start starts the program and waits until all seats serve.
func start(t *testing.T, p plan, change ...func(*exec.Cmd)) *running {
	t.Helper()
	r := launch(t, p, change...)
	r.addr = r.first("MasterStart").Addr[0]
	r.allServe()
	return r
}

// launch starts the program.
func launch(t *testing.T, p plan, change ...func(*exec.Cmd)) *running {
	t.Helper()
	r := &running{
		t: t, file: filepath.Join(t.TempDir(), "program"), network: "tcp",
		status: make(chan error, 1), left: make(chan struct{}), wake: make(chan struct{}), paused: make(chan struct{}, 1),
	}
	r.write(p)
	r.cmd = exec.Command(r.file)
	// The race detector waits a second at each exit, unless told not to.
	r.cmd.Env = append(os.Environ(), programEnv+"=1", "GORACE=atexit_sleep_ms=0")
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	for _, f := range change {
		f(r.cmd)
	}
	inR, inW := pipe(t)
	outR, outW := pipe(t)
	errR, errW := pipe(t)
	r.stdin = inW
	r.cmd.Stdin, r.cmd.Stdout = inR, outW
	if r.cmd.Stderr == nil {
		r.cmd.Stderr = errW
	}
	err := r.cmd.Start()
	inR.Close()
	outW.Close()
	errW.Close()
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() { r.readEvents(outR) })
	reading.Go(func() { r.readLog(errR) })
	go func() {
		reading.Wait() // ends when no process has the other ends any more
		close(r.left)
	}()
	exited := make(chan error, 1)
	go func() { exited <- r.cmd.Wait() }()
	go func() { r.status <- <-exited }()
	t.Cleanup(r.end)
	return r
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// end kills whatever is left of the program. Its processes are a group.
func (r *running) end() {
	r.stdin.Close()
	if r.unread { // the test has failed
		r.resumeLog()
	}
	for alive := true; alive; {
		syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
		select {
		case <-r.left:
			alive = false
		case <-time.After(50 * time.Millisecond): // one may have been born since
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	all := strings.Join(r.log, "\n")
	if strings.Contains(all, "DATA RACE") {
		r.t.Error("a data race in the program under test")
	}
	if *verbose || r.t.Failed() {
		r.t.Logf("log of the program:\n%s", all[max(0, len(all)-60<<10):])
	}
}

// write puts a build of the program with this plan in place.
func (r *running) write(p plan) {
	r.t.Helper()
	r.plan = p
	b, err := json.Marshal(p)
	if err != nil {
		r.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	from, err := os.Open(exe)
	if err != nil {
		r.t.Fatal(err)
	}
	defer from.Close()
	r.replace(io.MultiReader(from, strings.NewReader(planMark), bytes.NewReader(b)))
}

// replace puts another file in the program's place.
func (r *running) replace(content io.Reader) {
	r.t.Helper()
	// With the lock, no other test forks while the file is open for writing:
	// its child could not be executed (ETXTBSY, golang/go#22315).
	syscall.ForkLock.RLock()
	to, err := os.OpenFile(r.file+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o700)
	if err == nil {
		_, err = io.Copy(to, content)
		err = errors.Join(err, to.Close())
	}
	syscall.ForkLock.RUnlock()
	if err := errors.Join(err, os.Rename(r.file+".new", r.file)); err != nil {
		r.t.Fatal(err)
	}
}

// deploy puts another build in place.
func (r *running) deploy(change func(p *plan)) {
	r.t.Helper()
	p := r.plan
	change(&p)
	r.write(p)
}

func (r *running) changed(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.wake)
	r.wake = make(chan struct{})
}

func (r *running) readEvents(from *os.File) {
	defer from.Close()
	in := bufio.NewReader(from)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			continue
		}
		r.changed(func() { r.events = append(r.events, e) })
	}
}

func (r *running) readLog(from *os.File) {
	defer from.Close()
	in := bufio.NewReader(from)
	for {
		r.paused <- struct{}{}
		<-r.paused
		line, err := in.ReadString('\n')
		if line != "" {
			r.changed(func() { r.log = append(r.log, strings.TrimSuffix(line, "\n")) })
		}
		if err != nil {
			return
		}
	}
}

// pauseLog has nobody read the program's standard error, so that the pipe fills
// up, until resumeLog.
func (r *running) pauseLog()  { r.paused <- struct{}{}; r.unread = true }
func (r *running) resumeLog() { <-r.paused; r.unread = false }

// wait waits until f, called with r.mu held, is true.
func (r *running) wait(what string, f func() bool) {
	r.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	left := r.left
	for {
		r.mu.Lock()
		ok, wake := f(), r.wake
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-wake:
		case <-left:
			left = nil // once more, with the last words
			r.mu.Lock()
			ok := f()
			r.mu.Unlock()
			if !ok {
				r.t.Fatalf("the program has ended, want %s", what)
			}
			return
		case <-deadline.C:
			r.t.Fatalf("no %s", what)
		}
	}
}

// find waits for the nth event, from 1, that fits.
func (r *running) find(what string, nth int, fits func(e event) bool) event {
	r.t.Helper()
	var found event
	r.wait(what, func() bool {
		n := 0
		for _, e := range r.events {
			if fits(e) {
				if n++; n == nth {
					found = e
					return true
				}
			}
		}
		return false
	})
	return found
}

func (r *running) first(name string) event { r.t.Helper(); return r.nth(name, 1) }

func (r *running) nth(name string, n int) event {
	r.t.Helper()
	return r.find(fmt.Sprintf("%s (%d)", name, n), n, func(e event) bool { return e.Name == name })
}

// exitOfPID waits for the WorkerExit of a process.
func (r *running) exitOfPID(pid int) event {
	r.t.Helper()
	return r.find(fmt.Sprintf("WorkerExit of %d", pid), 1, func(e event) bool { return e.Name == "WorkerExit" && e.PID == pid })
}

// all returns the events so far that fit.
func (r *running) all(fits func(e event) bool) []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []event
	for _, e := range r.events {
		if fits(e) {
			found = append(found, e)
		}
	}
	return found
}

func (r *running) named(name string) []event {
	return r.all(func(e event) bool { return e.Name == name })
}

// logged waits for a line with all the words.
func (r *running) logged(words ...string) string {
	r.t.Helper()
	var found string
	r.wait(fmt.Sprintf("line with %q in the log", words), func() bool {
		for _, line := range r.log {
			has := true
			for _, w := range words {
				has = has && strings.Contains(line, w)
			}
			if has {
				found = line
				return true
			}
		}
		return false
	})
	return found
}

// send gives the master a command, and returns its number.
func (r *running) send(do string, n int) int {
	r.t.Helper()
	r.mu.Lock()
	r.asked++
	number := r.asked
	r.mu.Unlock()
	b, err := json.Marshal(command{Number: number, Do: do, N: n})
	if err == nil {
		_, err = r.stdin.Write(append(b, '\n'))
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return number
}

// begin gives the master a command, whose answer is to be waited for.
func (r *running) begin(do string, n int) (answer func() event) {
	r.t.Helper()
	number := r.send(do, n)
	return func() event {
		r.t.Helper()
		return r.find("answer to "+do, 1, func(e event) bool { return e.Answer == number })
	}
}

func (r *running) do(do string, n int) event { r.t.Helper(); return r.begin(do, n)() }

// must is do, without an error.
func (r *running) must(do string, n int) event {
	r.t.Helper()
	e := r.do(do, n)
	if e.Err != "" {
		r.t.Fatalf("%s: %s", do, e.Err)
	}
	return e
}

// stats asks the master. A question on its way when the master is replaced is
// lost, and asked again.
func (r *running) stats() Stats {
	r.t.Helper()
	for range int(patience / time.Second) {
		number := r.send("stats", 0)
		for again := time.Now().Add(time.Second); time.Now().Before(again); {
			r.mu.Lock()
			wake := r.wake
			i := slices.IndexFunc(r.events, func(e event) bool { return e.Answer == number })
			var e event
			if i >= 0 {
				e = r.events[i]
			}
			r.mu.Unlock()
			switch {
			case e.Err != "":
				r.t.Fatalf("stats: %s", e.Err)
			case i >= 0:
				return *e.Stats
			}
			select {
			case <-wake:
			case <-r.left:
				r.t.Fatal("the program has ended, want Stats")
			case <-time.After(time.Until(again)):
			}
		}
	}
	r.t.Fatal("no answer to stats")
	return Stats{}
}

// until waits until the master's statistics are as they should be. It asks
// again with each event, and after a while, as not all that changes is one.
func (r *running) until(what string, f func(s Stats) bool) Stats {
	r.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		r.mu.Lock()
		wake := r.wake
		r.mu.Unlock()
		s := r.stats()
		if f(s) {
			return s
		}
		select {
		case <-wake:
		case <-time.After(10 * time.Millisecond):
		}
	}
	r.t.Fatalf("not so: %s", what)
	return Stats{}
}

// allServe waits until each seat has one worker, which serves.
func (r *running) allServe() Stats {
	r.t.Helper()
	return r.until("all serve", func(s Stats) bool {
		if s.Restarting || s.Serving != s.Workers || len(s.Seats) != s.Workers {
			return false
		}
		for _, seat := range s.Seats {
			if len(seat.Workers) != 1 || seat.Workers[0].State != "serving" {
				return false
			}
		}
		return true
	})
}

func workersOf(s Stats) (all []WorkerStats) {
	for _, seat := range s.Seats {
		all = append(all, seat.Workers...)
	}
	return all
}

func pidsOf(s Stats) (pids []int) {
	for _, w := range workersOf(s) {
		pids = append(pids, w.PID)
	}
	return pids
}

func (r *running) pid() int { return r.first("MasterStart").PID }

// kill sends a signal to a process of the program.
func (r *running) kill(pid int, s syscall.Signal) {
	r.t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		r.t.Fatalf("%v to %d: %v", s, pid, err)
	}
	for s == syscall.SIGSTOP && runs(pid) { // until then it may accept
		time.Sleep(time.Millisecond)
	}
}

// runs reports whether a thread of a process has not been stopped, where that
// can be seen.
func runs(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	return slices.ContainsFunc(threads, func(name string) bool {
		stat, err := os.ReadFile(name)
		return err == nil && !bytes.HasPrefix(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" T "))
	})
}

// gone waits until no process of the program is left, and returns the exit
// status of the master, or minus the signal.
func (r *running) gone() int {
	r.t.Helper()
	deadline := time.After(patience)
	var err error
	select {
	case err = <-r.status:
	case <-deadline:
		r.t.Fatal("the master does not end")
	}
	select {
	case <-r.left:
	case <-deadline:
		r.t.Fatal("the master has left processes behind")
	}
	exit, _ := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		return 0
	case exit == nil:
		r.t.Fatal(err)
	}
	if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
		return -int(status.Signal())
	}
	return exit.ExitCode()
}

// ended waits until processes are gone.
func (r *running) ended(pids []int) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); len(pids) > 0; time.Sleep(10 * time.Millisecond) {
		pids = slices.DeleteFunc(pids, func(pid int) bool { return syscall.Kill(pid, 0) != nil })
		if time.Now().After(deadline) {
			r.t.Fatalf("processes %v are still there", pids)
		}
	}
}

// stop stops the program and checks its status.
func (r *running) stop() {
	r.t.Helper()
	r.kill(r.pid(), syscall.SIGTERM)
	if status := r.gone(); status != 0 {
		r.t.Errorf("status %d after SIGTERM", status)
	}
}

// load is traffic in the background.
type load struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan traffic.Result

	mu     sync.Mutex
	builds map[string]int
	pids   map[string]int
	waits  []time.Duration      // from connect to the first byte
	old    map[string]time.Time // builds of which no answer is left, by then
	stale  int
}

// load starts clients that go on whatever happens.
func (r *running) load(clients int, mode traffic.Mode, path string) *load {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: r.t, cancel: cancel, done: make(chan traffic.Result, 1), builds: map[string]int{}, pids: map[string]int{}, old: map[string]time.Time{}}
	cfg := traffic.Config{
		Network: r.network, Addr: r.addr, TLS: r.plan.TLS, Path: path, Clients: clients, Mode: mode,
		Timeout: patience / 2, GoOn: true, Each: l.each,
	}
	go func() {
		res, err := traffic.Run(ctx, cfg, nil)
		if err != nil {
			r.t.Error(err)
		}
		l.done <- res
	}()
	r.t.Cleanup(cancel)
	return l
}

func (l *load) each(x *traffic.Exchange) {
	if x.Err != nil {
		return
	}
	build := x.Header.Get("X-Build")
	l.mu.Lock()
	defer l.mu.Unlock()
	l.builds[build]++
	l.pids[x.Header.Get("X-Pid")]++
	l.waits = append(l.waits, x.FirstByte.Sub(x.Began))
	if since, ok := l.old[build]; ok && x.Began.After(since) {
		l.stale++
	}
}

// answered waits until n more requests have been answered.
func (l *load) answered(n int) {
	l.t.Helper()
	count := func() (sum int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, n := range l.builds {
			sum += n
		}
		return sum
	}
	want := count() + n
	for deadline := time.Now().Add(patience); count() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatal("nobody answers")
		}
	}
}

// retire says that from now on no request may be answered by a build.
func (l *load) retire(build string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.old[build] = time.Now()
}

// finish ends the load.
func (l *load) finish() traffic.Result {
	l.t.Helper()
	l.cancel()
	select {
	case res := <-l.done:
		return res
	case <-time.After(patience):
		l.t.Fatal("the load does not end")
		return traffic.Result{}
	}
}

// lossless ends the load, and fails if anything was lost or refused, or came
// from old code.
func (l *load) lossless() {
	l.t.Helper()
	res := l.finish()
	if res.Lost+res.Refused > 0 {
		l.t.Errorf("%d answered, %d lost, %d refused: %q", res.Answered, res.Lost, res.Refused, res.Errors)
	}
	if l.stale > 0 {
		l.t.Errorf("%d answers from old code: %v", l.stale, l.builds)
	}
	if res.Answered == 0 {
		l.t.Error("no request was answered")
	}
}

// get makes one request on a connection of its own.
func (r *running) get(path string) *http.Response {
	r.t.Helper()
	resp, err := r.try(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp
}

func (r *running) try(path string) (*http.Response, error) {
	client := &http.Client{
		Timeout: patience,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, r.network, r.addr)
			},
		},
	}
	resp, err := client.Get("http://usher.test" + path)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	resp.Body = io.NopCloser(strings.NewReader(string(body)))
	return resp, err
}

// refused checks that nobody listens any more.
func (r *running) refused() {
	r.t.Helper()
	if c, err := net.DialTimeout(r.network, r.addr, time.Second); err == nil {
		c.Close()
		r.t.Error("a connect was not refused")
	}
}

// sample calls Stats over and over, and returns the lowest number of serving
// workers when it is told to stop.
func (r *running) sample() (lowest func() int) {
	over, result := make(chan struct{}), make(chan int, 1)
	go func() {
		least := 1 << 30
		for {
			select {
			case <-over:
				result <- least
				return
			default:
			}
			least = min(least, r.stats().Serving)
		}
	}()
	return func() int { close(over); return <-result }
}

// children returns the processes whose parent is pid, and their states.
func children(t *testing.T, pid int) map[int]string {
	t.Helper()
	found := map[int]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Skip("no /proc")
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			found[n] = fields[0]
		}
	}
	return found
}

// fds counts a process's descriptors.
func fds(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Skip("no /proc")
	}
	return len(entries)
}
