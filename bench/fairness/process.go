package fairness

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/seed-235859eb/usher"
)

// childEnv makes a program that calls [ServeIfChild] a server. Its value is a
// Spec.
const childEnv = "USHER_FAIRNESS_CHILD"

// A Spec describes a server that runs as a process of its own.
type Spec struct {
	Contender string
	Limits    Limits        // without Exempt
	Sleep     time.Duration // for each request
	HTTP2     bool          // without TLS, besides HTTP/1
	Timed     bool          // answers have a ServiceHeader
}

// ServiceHeader tells the client how long its request was in the handler.
const ServiceHeader = "X-Service-Time"

// ServeIfChild does nothing in a program that was started by somebody else. In
// one that [Start] has started it serves until that one ends, and then exits.
func ServeIfChild() {
	text, ok := os.LookupEnv(childEnv)
	if !ok {
		return
	}
	if err := serveChild(text); err != nil {
		fmt.Fprintln(os.Stderr, "fairness: child:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serveChild(text string) error {
	var spec Spec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	c, err := contender(spec.Contender)
	if err != nil {
		return err
	}
	l, err := usher.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var began time.Time
		if spec.Timed {
			began = time.Now()
		}
		time.Sleep(spec.Sleep)
		if spec.Timed {
			w.Header().Set(ServiceHeader, time.Since(began).String())
		}
		io.WriteString(w, "ok")
	})}
	if spec.HTTP2 {
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
	}
	failed := make(chan error, 1)
	go func() { failed <- c.New(srv, spec.Limits).Serve(l) }()
	fmt.Println(l.Addr())

	orphaned := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin) // which ends with the parent
		close(orphaned)
	}()
	select {
	case err := <-failed:
		return err
	case <-orphaned:
		return nil
	}
}

func contender(name string) (Contender, error) {
	for _, c := range Contenders {
		if c.Name == name {
			return c, nil
		}
	}
	return Contender{}, fmt.Errorf("there is no contender %q", name)
}

// A Process is a server that [Start] has started.
type Process struct {
	Addr string
	PID  int

	cmd   *exec.Cmd
	stdin io.Closer
}

// stopPatience is how long a process may take to exit before it is killed.
const stopPatience = 5 * time.Second

// Start runs this program again, as a server. It ends with [Process.Stop], or
// with this program however that ends.
func Start(spec Spec) (*Process, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a server: %w", err)
	}
	p := &Process{PID: cmd.Process.Pid, cmd: cmd, stdin: stdin}
	addr, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		p.Stop()
		return nil, fmt.Errorf("server %s did not start: %w", spec.Contender, err)
	}
	p.Addr = strings.TrimSpace(addr)
	return p, nil
}

// Stop ends the process and waits for it.
func (p *Process) Stop() {
	p.stdin.Close()
	kill := time.AfterFunc(stopPatience, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	p.cmd.Wait() // a server that was told to end has nothing to say
}
