//go:build unix && !linux

package gate

// queueLen is not supported on this system.
func queueLen(int) (int, bool) { return 0, false }
