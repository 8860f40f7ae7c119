//go:build unix

package process

import (
	"os/exec"
	"syscall"
)

// isolate prepares a command to be ended with all that it starts.
func isolate(cmd *exec.Cmd) { cmd.SysProcAttr = attributes() }

// killAll kills a process that was isolated, and those that it started. The
// group's id stays theirs as long as there is one of them; the caller has seen
// that there is.
func killAll(cmd *exec.Cmd) { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
