//go:build unix

package main

import (
	"os"
	"os/exec"
	"syscall"
)

// terminate asks a process to end.
var terminate os.Signal = syscall.SIGTERM

// killGroup kills the process, if it has not been waited for, and whoever is
// left in its group.
func killGroup(cmd *exec.Cmd) {
	cmd.Process.Kill()
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
}
