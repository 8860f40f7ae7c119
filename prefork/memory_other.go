//go:build !linux

package prefork

// residentMemory is not known on this system.
func residentMemory() uint64 { return 0 }
