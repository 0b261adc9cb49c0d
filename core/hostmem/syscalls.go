package hostmem

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"unsafe"

	"kvferry/core/threads"

	"golang.org/x/sys/unix"
)

// Copies by system calls. Go's scheduler knows of each of them, so they may wait for a page. They return EFAULT for memory that is
// not mapped.
//
//  1. process_vm_readv(2) copies from this process into itself.
//  2. If that fails, the bytes go through a pipe. A seccomp filter may forbid process_vm_readv, and it does not read memory that a
//     driver has mapped. The pipe is also used if source and destination overlap, which process_vm_readv does not respect.

// forbidden is set when the system does not let the process copy from itself.
var forbidden atomic.Bool

func copyBySyscalls(dst, src uintptr, length uint64) error {
	threads.Enter()
	defer threads.Leave()
	if length == 0 || copyAtOnce(dst, src, length) {
		return nil
	}
	return copyThroughPipe(dst, src, length)
}

// copyAtOnce makes the copy by process_vm_readv. It returns false if that was not possible.
func copyAtOnce(dst, src uintptr, length uint64) bool {
	overlap := uint64(dst) < uint64(src)+length && uint64(src) < uint64(dst)+length
	if overlap || forbidden.Load() {
		return false
	}
	to, from := vector{dst, length}, vector{src, length}
	n, _, errno := unix.Syscall6(unix.SYS_PROCESS_VM_READV, uintptr(unix.Getpid()),
		uintptr(unsafe.Pointer(&to)), 1, uintptr(unsafe.Pointer(&from)), 1, 0)
	if errno == unix.EPERM || errno == unix.ENOSYS {
		forbidden.Store(true)
	}
	return errno == 0 && uint64(n) == length
}

// vector is struct iovec, without a pointer for the collector to follow.
type vector struct {
	base   uintptr
	length uint64
}

// copyThroughPipe copies as much at a time as the pipe holds. Overlapping memory is copied from the end that is not overwritten.
func copyThroughPipe(dst, src uintptr, length uint64) error {
	p, err := openPipe()
	if err != nil {
		return fmt.Errorf("a pipe to copy through: %w", err)
	}
	defer p.close()
	for done := uint64(0); done < length; {
		part := min(p.room, length-done)
		at := done
		if dst > src {
			at = length - done - part
		}
		if err := p.write(src+uintptr(at), part); err != nil {
			return fmt.Errorf("the source cannot be read: %w", err)
		}
		if err := p.read(dst+uintptr(at), part); err != nil {
			return fmt.Errorf("the destination cannot be written: %w", err)
		}
		done += part
	}
	return nil
}

// pipe is a pipe for one copy: bytes that a failed copy leaves in it are not read by another one.
type pipe struct {
	ends [2]int
	room uint64 // bytes that an empty one takes
}

func openPipe() (p pipe, err error) {
	if err := unix.Pipe2(p.ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return p, os.NewSyscallError("pipe2", err)
	}
	room, err := unix.FcntlInt(uintptr(p.ends[0]), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		p.close()
		return p, os.NewSyscallError("fcntl", err)
	}
	p.room = uint64(room)
	return p, nil
}

func (p *pipe) write(from uintptr, length uint64) error {
	return transfer(unix.SYS_WRITE, p.ends[1], from, length)
}

func (p *pipe) read(to uintptr, length uint64) error {
	return transfer(unix.SYS_READ, p.ends[0], to, length)
}

func (p *pipe) close() {
	for _, end := range p.ends {
		_ = unix.Close(end)
	}
}

// transfer reads or writes all of a range.
func transfer(call uintptr, end int, addr uintptr, length uint64) error {
	for length > 0 {
		n, _, errno := unix.Syscall(call, uintptr(end), addr, uintptr(length))
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return errno
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		addr += n
		length -= uint64(n)
	}
	return nil
}
