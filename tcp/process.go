package tcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"kvferry/core/hostmem"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"golang.org/x/sys/unix"
)

// process is the process at the other end of a Unix-domain socket, as the kernel tells it. A process id can be given to
// another process after the first one has ended; the file descriptor cannot, and tells the end. A nil process is one whose
// memory is out of reach. The methods may be called from any goroutine until close.
type process struct {
	id    int
	file  int           // a pidfd(2)
	lived atomic.Uint64 // a hostmem.Time at which it had not ended
}

// peerProcess finds the process at the other end of a socket. It fails for a process of another user, and for one that
// cannot be seen from here. Before Linux 6.5 the id may be that of a successor by now: see isPeer.
func peerProcess(socket int) (*process, error) {
	who, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	switch {
	case err != nil:
		return nil, os.NewSyscallError("getsockopt", err)
	case who.Pid <= 0:
		return nil, errors.New("the process at the other end is not to be seen from here")
	case int(who.Uid) != os.Geteuid():
		return nil, fmt.Errorf("process %d belongs to user %d, not %d", who.Pid, who.Uid, os.Geteuid())
	}
	file, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		if file, err = unix.PidfdOpen(int(who.Pid), 0); err != nil {
			return nil, os.NewSyscallError("pidfd_open", err)
		}
	}
	unix.CloseOnExec(file)
	p := &process{id: int(who.Pid), file: file}
	if !p.lives() {
		return nil, errors.Join(fmt.Errorf("process %d has ended", who.Pid), p.close())
	}
	return p, nil
}

// processBehind finds the process at the other end of a connection.
func processBehind(conn sockio.Conn) (p *process, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(socket uintptr) { p, err = peerProcess(int(socket)) })
	return p, errors.Join(controlErr, err)
}

// lives reports whether the process has not ended.
func (p *process) lives() bool {
	poll := unix.PollFd{Fd: int32(p.file), Events: unix.POLLIN}
	var atOnce unix.Timespec
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&atOnce)), 0, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		lives := errno == 0 && n == 0
		if lives {
			p.lived.Store(uint64(hostmem.Now()))
		}
		return lives
	}
}

// livedLately reports whether it was found alive so short a while ago, some 60 ms at most, that its id cannot be another
// one's yet: the kernel gives all other ids before one comes again.
func (p *process) livedLately() bool { return p.lived.Load() == uint64(hostmem.Now()) }

// hasItsID reports whether the process, which has ended, has its id still: its parent has not asked for its end yet.
func (p *process) hasItsID() bool {
	return unix.PidfdSendSignal(p.file, 0, nil, 0) == nil
}

// proof is memory of a process that shows, when it is copied after other memory by the same system call or by a later one,
// that all came from that process while the copies were valid. No other process has the same bytes at that address: not one
// that has got the process's id, nor a child that was forked, which has other memory there.
type proof struct {
	at       uintptr // in that process
	length   uint64  // bytes
	expected proofBytes
}

// proofOf shows that memory was copied from the region's process before the grant ended.
func proofOf(g *wire.Grant) proof {
	p := proof{at: uintptr(g.EpochAt), length: 8}
	binary.NativeEndian.PutUint64(p.expected[:], g.Epoch)
	return p
}

// proofBytes has room for the bytes of a proof; zeros follow those of a short one.
type proofBytes [16]byte

// close gives the file descriptor back.
func (p *process) close() error {
	if p == nil {
		return nil
	}
	return unix.Close(p.file)
}

func (p *process) String() string {
	if p == nil {
		return "a process out of reach"
	}
	return fmt.Sprintf("process %d", p.id)
}
