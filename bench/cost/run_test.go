//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain makes the test's binary a server when it is started as one.
func TestMain(m *testing.M) {
	if kind := os.Getenv(childEnv); kind != "" {
		if err := serveChild(kind, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestRun makes every measurement in a short form. What comes out is not
// looked at: figures belong to a machine.
func TestRun(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	cfg, err := parse(strings.Fields("-slices 8 -slice 30ms -clients 4 -idle-conns 50 -idle-rounds 1 -stop-rounds 1 -timeout 5m"), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := run(t.Context(), cfg, &out); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	for _, s := range sections {
		if !strings.Contains(out.String(), "\n"+s.name+": ") && !strings.HasPrefix(out.String(), s.name+": ") {
			t.Errorf("nothing is said of %s", s.name)
		}
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestInterrupt checks that a measurement can be left at any time.
func TestInterrupt(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	for _, s := range sections {
		t.Run(s.name, func(t *testing.T) {
			cfg, err := parse([]string{"-only", s.name, "-clients", "4", "-idle-conns", "50"}, t.Output())
			if err != nil {
				t.Fatal(err)
			}
			cause := errors.New("enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			stop := time.AfterFunc(2*time.Second, func() { cancel(cause) })
			defer stop.Stop()
			if err := run(ctx, cfg, t.Output()); !errors.Is(err, cause) {
				t.Errorf("run returned %v, want %v", err, cause)
			}
			if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct{ args, err string }{
		{"", ""},
		{"-only stop,file", ""},
		{"-usher-slots -1", "-usher-slots=-1"},
		{"-only nothing", "no such section"},
		{"-slices 0", "-slices=0"},
		{"-slice -1s", "must be positive"},
		{"-no-such-flag", "bad flags"},
		{"stray", `"stray"`},
	} {
		_, err := parse(strings.Fields(tt.args), t.Output())
		if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%q: error %v, want %q", tt.args, err, tt.err)
		}
	}
}
