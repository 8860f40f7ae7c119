package leakcheck

import (
	"os"
	"strings"
	"testing"
)

type runner func() int

func (f runner) Run() int { return f() }

func TestLeaks(t *testing.T) {
	if code := Run(runner(func() int { return 0 })); code != 0 {
		t.Errorf("nothing left: %d", code)
	}
	if code := Run(runner(func() int { return 7 })); code != 7 {
		t.Errorf("failed tests: %d", code)
	}
	stop := make(chan struct{})
	leak := func() int { go wait(stop); return 0 }
	if code := Run(runner(leak)); code != 1 {
		t.Errorf("a goroutine left: %d", code)
	}
	close(stop)
	if openFiles() == 0 {
		t.Skip("this system does not list descriptors")
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s := leaked(openFiles() - 1); !strings.Contains(s, "descriptors open") {
		t.Errorf("a descriptor left: %q", s)
	}
}

func wait(stop chan struct{}) { <-stop }
