//go:build !unix

package process

import "os/exec"

// isolate does nothing: there are no groups.
func isolate(*exec.Cmd) {}

// killAll kills the process only.
func killAll(cmd *exec.Cmd) { cmd.Process.Kill() }
