//go:build !linux

package sdnotify

// monotonicLine returns nothing: what compares the time is systemd, which runs
// on Linux only. A stand-in elsewhere would have a clock of its own choice.
func monotonicLine() string { return "" }
