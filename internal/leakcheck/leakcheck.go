// Package leakcheck fails a run of tests that leaves goroutines or descriptors
// behind.
package leakcheck

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"time"
)

// Run runs the tests and returns the status to exit with. It is for TestMain.
func Run(m interface{ Run() int }) int {
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
	return code
}

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
		if strings.Contains(s, "leakcheck.strangers") || strings.Contains(s, "testing.(*M)") || strings.Contains(s, "os/signal.") {
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
