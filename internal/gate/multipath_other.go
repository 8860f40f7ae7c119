//go:build !linux

package gate

// Multipath reports false: package net has Multipath TCP on Linux only.
func Multipath() bool { return false }
