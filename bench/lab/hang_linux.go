package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// hang has a process do nothing any more. A thread runs on until it has seen
// the signal, which takes a while on a busy machine, and could accept a
// connection meanwhile: hang returns when none does.
func hang(ctx context.Context, pid int) error {
	if err := signalWorker(pid, hangSignal); err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		stopped, err := isStopped(pid)
		if err != nil || stopped {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// isStopped reports whether no thread of a process runs.
func isStopped(pid int) (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return false, err
	}
	if len(threads) == 0 {
		return false, fmt.Errorf("there is no process %d", pid)
	}
	for _, name := range threads {
		stat, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil // a thread has ended: look again
		}
		if err != nil {
			return false, err
		}
		// The state follows the program's name, which may have anything in it.
		if _, state, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" ")); !ok || state[0] != 'T' {
			return false, nil
		}
	}
	return true, nil
}
