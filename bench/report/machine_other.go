//go:build !linux

package report

// kernel is known on Linux only.
func kernel() string { return "unknown" }
