package prefork

import (
	"bytes"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMain is the program under test, if the environment says so: tests start
// the test binary again as a master, which starts it as workers. Otherwise it
// runs the tests, and fails the run if goroutines or descriptors are left.
func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		os.Exit(testProgram())
	}
	// Tests wait for processes most of the time. The flag, if given, wins.
	flag.Set("test.parallel", strconv.Itoa(3*runtime.GOMAXPROCS(0)))
	// The runtime keeps descriptors of its own, from the first socket on.
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
	before := openFiles()
	code := m.Run()
	if code == 0 {
		if leak := leaked(before); leak != "" {
			fmt.Fprintln(os.Stderr, leak)
			code = 1
		}
	}
	os.Exit(code)
}

// programEnv makes the test binary the program under test.
const programEnv = "PREFORK_TEST_PROGRAM"

// leaked gives what ends asynchronously a moment, and describes what stays.
func leaked(before int) string {
	var goroutines []string
	var files int
	for range 100 {
		goroutines, files = strangers(), openFiles()
		if len(goroutines) == 0 && files <= before {
			return ""
		}
		time.Sleep(20 * time.Millisecond) // nothing announces the end of a goroutine
	}
	return fmt.Sprintf("%d goroutines left; %d descriptors open, %d at the start\n%s",
		len(goroutines), files, before, strings.Join(goroutines, "\n\n"))
}

// strangers returns the stacks of goroutines that neither this function nor
// package testing runs in.
func strangers() []string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var found []string
	for _, g := range bytes.Split(buf, []byte("\n\n")) {
		s := string(g)
		if strings.Contains(s, "prefork.strangers") || strings.Contains(s, "testing.(*M)") || strings.Contains(s, "os/signal.") {
			continue
		}
		found = append(found, s)
	}
	return found
}

// openFiles counts the process's descriptors, where the system lists them.
func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}
