//go:build !linux

package prefork

// execName returns the path that this program was executed by, if the system
// tells.
func execName() string { return "" }
