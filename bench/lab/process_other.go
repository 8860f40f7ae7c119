//go:build !unix

package main

import (
	"os"
	"os/exec"
)

// terminate ends a process: nothing asks here.
var terminate = os.Kill

// ownGroup does nothing: there are no groups here.
func ownGroup(*exec.Cmd) {}

// killGroup kills the process, not what it has started.
func killGroup(cmd *exec.Cmd) { cmd.Process.Kill() }
