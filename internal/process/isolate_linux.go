package process

import "syscall"

// attributes: a group of its own, that Ctrl-C does not reach, and the end of
// this process is its own, even if this one is killed.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
