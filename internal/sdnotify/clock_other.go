//go:build !linux

package sdnotify

// monotonicLine returns nothing. The line is for units of Type=notify-reload,
// which only systemd has, and systemd runs on Linux only; a stand-in elsewhere
// would compare it with a clock that this package does not know.
func monotonicLine() (string, error) { return "", nil }
