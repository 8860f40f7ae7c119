package main

import (
	"os/exec"
	"syscall"
)

// ownGroup has the process lead a group, and die with this one.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
