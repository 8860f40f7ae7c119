//go:build unix && !linux

package process

import "syscall"

// attributes: a group of its own, that Ctrl-C does not reach.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
