package reuseport

import "golang.org/x/sys/unix"

// reuseOption is not SO_REUSEPORT, with which FreeBSD does not balance.
const reuseOption = unix.SO_REUSEPORT_LB

// joinsLate is false: the option counts in bind(2).
const joinsLate = false
