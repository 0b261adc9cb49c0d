package samehost

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"kvferry/core/hostmem"
	"kvferry/tcp/sockio"

	"golang.org/x/sys/unix"
)

// Process is the process at the other end of a Unix-domain socket, as the kernel names it. The kernel may give the process id
// to another process after the first one has ended. The file descriptor stays with the first one, and shows its end. A nil
// Process is one whose memory is out of reach. Any goroutine may call the methods until Close.
type Process struct {
	id    int
	file  int           // a pidfd(2)
	alive atomic.Uint64 // the last hostmem.Time at which it was found alive
}

// PeerProcess finds the process at the other end of a socket. It fails for a process of another user, and for one that
// cannot be seen from here. Before Linux 6.5 the id may be that of a successor by now: see isPeer.
func PeerProcess(socket int) (*Process, error) {
	who, err := sameUser(socket)
	switch {
	case err != nil:
		return nil, err
	case who.Pid <= 0:
		return nil, errors.New("the process at the other end cannot be seen from here")
	}
	file, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		if file, err = unix.PidfdOpen(int(who.Pid), 0); err != nil {
			return nil, os.NewSyscallError("pidfd_open", err)
		}
	}
	unix.CloseOnExec(file)
	p := &Process{id: int(who.Pid), file: file}
	if !p.Lives() {
		return nil, errors.Join(fmt.Errorf("process %d has ended", who.Pid), p.Close())
	}
	return p, nil
}

// sameUser returns who is at the other end of a socket. It fails for a process of another user.
func sameUser(socket int) (*unix.Ucred, error) {
	who, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	switch {
	case err != nil:
		return nil, os.NewSyscallError("getsockopt", err)
	case int(who.Uid) != os.Geteuid():
		return nil, fmt.Errorf("process %d belongs to user %d, not %d", who.Pid, who.Uid, os.Geteuid())
	}
	return who, nil
}

// RefuseOtherUsers fails for a connection whose other end is a process of another user.
func RefuseOtherUsers(conn sockio.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(socket uintptr) { _, err = sameUser(int(socket)) })
	return errors.Join(controlErr, err)
}

// ProcessBehind finds the process at the other end of a connection.
func ProcessBehind(conn sockio.Conn) (p *Process, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(socket uintptr) { p, err = PeerProcess(int(socket)) })
	return p, errors.Join(controlErr, err)
}

// Lives reports whether the process has not ended.
func (p *Process) Lives() bool {
	poll := unix.PollFd{Fd: int32(p.file), Events: unix.POLLIN}
	var atOnce unix.Timespec
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&atOnce)), 0, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		lives := errno == 0 && n == 0
		if lives {
			p.alive.Store(uint64(hostmem.Now()))
		}
		return lives
	}
}

// livedLately reports whether the process was found alive within the last 60 ms or so. Another process cannot have its id yet,
// because the kernel gives out all other ids before it repeats one.
func (p *Process) livedLately() bool { return p.alive.Load() == uint64(hostmem.Now()) }

// hasItsID reports whether the process, which has ended, still has its id: its parent has not collected its status yet.
func (p *Process) hasItsID() bool {
	return unix.PidfdSendSignal(p.file, 0, nil, 0) == nil
}

// Close gives the file descriptor back.
func (p *Process) Close() error {
	if p == nil {
		return nil
	}
	return unix.Close(p.file)
}

// String names the process for an error.
func (p *Process) String() string {
	if p == nil {
		return "a process out of reach"
	}
	return fmt.Sprintf("process %d", p.id)
}
