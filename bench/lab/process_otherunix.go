//go:build unix && !linux

package main

import (
	"os/exec"
	"syscall"
)

// ownGroup has the process lead a group.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
