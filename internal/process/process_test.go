//go:build unix

package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const childEnv = "USHER_PROCESS_TEST"

// TestMain makes the test's binary a server when it is started as one.
func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "fail":
		fmt.Println("no luck")
		os.Exit(3)
	case "master": // that leaves its worker behind
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"=stubborn")
		cmd.Stdout = os.Stdout
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
		}
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		<-term
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("msg=listening addr=here pid", os.Getpid())
		time.Sleep(time.Hour)
	case "silent":
		l, err := net.Listen("tcp", os.Getenv("ADDR"))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		l.Accept()
	case "server":
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		fmt.Println(strings.Repeat("long", 1<<15))
		fmt.Fprintln(os.Stderr, "msg=listening addr=127.0.0.1:1")
		<-term
		fmt.Println("bye")
	}
}

func self(kind string) Spec {
	return Spec{Path: os.Args[0], Env: []string{childEnv + "=" + kind}}
}

func TestStartStop(t *testing.T) {
	p, err := Start(t.Context(), self("server"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Addr != "127.0.0.1:1" || gone(p.PID) {
		t.Errorf("address %q, process %d", p.Addr, p.PID)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	p.Kill() // does nothing now
	if !gone(p.PID) || len(p.Matches(regexp.MustCompile("^bye$"))) != 1 || p.Gone().IsZero() {
		t.Errorf("after its end: %s", p.Output())
	}
	if m, err := p.Await(t.Context(), regexp.MustCompile("^(b)ye$"), 1); err != nil || m[1] != "b" {
		t.Errorf("the last line: %q, %v", m, err)
	}
	if _, err := p.Await(t.Context(), regexp.MustCompile("^bye$"), 2); err == nil {
		t.Error("the same line was found twice")
	}
}

// TestAwaitConnect: a server that says nothing.
func TestAwaitConnect(t *testing.T) {
	addr, release, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	spec := self("silent")
	spec.Addr, spec.Env = addr, append(spec.Env, "ADDR="+addr)
	p, err := Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Ended() // when it has had the connection
	spec.Env = append(spec.Env, "ADDR=127.0.0.1:none")
	if _, err := Start(t.Context(), spec); err == nil {
		t.Error("a server that does not listen started")
	}
}

// TestKillsAll: a worker whose master is gone, and that does not listen.
func TestKillsAll(t *testing.T) {
	p, err := Start(t.Context(), self("master"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Await(t.Context(), regexp.MustCompile(`pid (\d+)`), 1)
	if err != nil {
		t.Fatal(err)
	}
	worker, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	if isClosed(p.Ended()) || gone(worker) {
		t.Error("the worker is gone already")
	}
	p.Kill()
	for !gone(worker) { // a zombie of init's, for a moment
		time.Sleep(time.Millisecond)
	}
}

func TestStartErrors(t *testing.T) {
	_, err := Start(t.Context(), self("fail"))
	se, ok := errors.AsType[*StartError](err)
	if !ok || se.State.ExitCode() != 3 || se.Output != "no luck" {
		t.Errorf("error %v", err)
	}
	if _, err := Start(t.Context(), Spec{Path: "/no/such/program"}); err == nil {
		t.Error("a program that is not there started")
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	spec := self("stubborn")
	spec.Ready = regexp.MustCompile("never")
	time.AfterFunc(100*time.Millisecond, func() { cancel(cause) })
	if _, err := Start(ctx, spec); !errors.Is(err, cause) {
		t.Errorf("error %v", err)
	}
}

// gone reports whether a process has ended.
func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }
