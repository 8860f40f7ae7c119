package reuseport

import (
	"errors"
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const reuseOption = unix.SO_REUSEPORT

// joinsLate says that a socket which got the option when it listened already has
// those that follow beside it.
const joinsLate = true

// program returns the number of one of the seats, each with the same chance.
//
// It loads ancillary data only: the program sees a packet from behind its TCP
// header on, and a load from the empty payload of a SYN would end it with seat
// 0. Nor does it look at the CPU, for often a few CPUs take all interrupts.
func program(seats []int) []bpf.Instruction {
	prog := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtRand},
		bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(len(seats))},
	}
	for i, seat := range seats {
		prog = append(prog,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(i), SkipFalse: 1},
			bpf.RetConstant{Val: uint32(seat)},
		)
	}
	// Never reached, but a program must end. For a number that no socket has,
	// such as that of a seat that Shrink removed, the kernel goes by its hash.
	return append(prog, bpf.RetConstant{Val: 1<<32 - 1})
}

// steer attaches a program to the group that fd is in, or detaches the one
// there is if the seats are all. It takes effect at once, without a moment in
// which the group is between two programs, and needs no privilege.
func steer(fd int, seats []int, all bool) error {
	if all {
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0)
		switch err {
		case nil, unix.ENOENT: // ENOENT: no program.
			return nil
		case unix.ENOPROTOOPT: // Before Linux 5.3 a program stays for good.
		default:
			return fmt.Errorf("detach program: %w", err)
		}
	}
	prog, err := bpf.Assemble(program(seats))
	if err != nil {
		return fmt.Errorf("assemble program: %w", err)
	}
	filter := make([]unix.SockFilter, len(prog))
	for i, in := range prog {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	fprog := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, fprog)
	switch err {
	case nil:
		return nil
	case unix.ENOPROTOOPT, unix.EPERM, unix.EACCES:
		// Before Linux 4.5, on an emulation of it, or by a seccomp profile.
		err = errors.Join(err, errors.ErrUnsupported)
	}
	return fmt.Errorf("attach program: %w", err)
}
