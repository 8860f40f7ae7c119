//go:build !linux

package main

import "context"

// hang has a process do nothing any more, in a moment.
func hang(_ context.Context, pid int) error { return signalWorker(pid, hangSignal) }
