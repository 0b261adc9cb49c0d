package tcp

import (
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxGatherVectors is how many vectors one sendmsg or recvmsg takes (UIO_MAXIOV).
const maxGatherVectors = 1024

// ioVector is one stretch of memory to send from or receive into, laid out as struct iovec. base is a plain address:
// the caller keeps the memory in place, and lives with what is there when it belongs to somebody else. An address that
// is not mapped makes the call fail with EFAULT.
type ioVector struct {
	base   uintptr
	length uint64
}

// socket moves bytes between a data connection and vectors of memory without a copy and without allocating. Waiting is
// done by Go's netpoller, so the connection's deadlines and Close end it. SIGPIPE is never raised.
//
// One goroutine may send while another receives; two may not do the same.
type socket struct {
	raw     syscall.RawConn
	out, in half
	lookers atomic.Int32 // who look for what comes
}

func newSocket(c syscall.Conn) (*socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{raw: raw}
	s.out = half{call: "sendmsg", number: unix.SYS_SENDMSG, flags: unix.MSG_NOSIGNAL, wait: raw.Write, events: unix.POLLOUT}
	s.in = half{call: "recvmsg", number: unix.SYS_RECVMSG, wait: raw.Read, events: unix.POLLIN}
	s.out.attempt = s.out.once
	s.in.attempt = s.in.once
	return s, nil
}

// trySend sends what the socket buffer takes right now, from at most maxGatherVectors vectors. again says that it
// takes nothing.
func (s *socket) trySend(v []ioVector) (n int, again bool, err error) {
	return s.out.do(v, false)
}

// send sends some bytes, waiting until the socket buffer takes any.
func (s *socket) send(v []ioVector) (n int, err error) {
	n, _, err = s.out.do(v, true)
	return n, err
}

// tryReceive receives what has arrived, into at most maxGatherVectors vectors that hold at least one byte. again says
// that nothing has. At end of file err is io.EOF.
func (s *socket) tryReceive(v []ioVector) (n int, again bool, err error) {
	return eof(s.in.do(v, false))
}

// look and looked enclose the time in which somebody calls tryReceive, or receiveAt, again and again: what comes over
// TCP meanwhile, if it is short, does not wake a thread that waits for it. Who has looked in vain finds it after looked.
func (s *socket) look() {
	if s.lookers.Add(1) == 1 {
		s.wakeAt(lookedFor)
	}
}

func (s *socket) looked() {
	if s.lookers.Add(-1) == 0 {
		s.wakeAt(1)
	}
}

// lookedFor is so many bytes that they are no short message any more, and fit the smallest of socket buffers.
const lookedFor = 32 << 10

// wakeAt has the kernel wake who waits for the socket when so many bytes have come. It fails on a connection that is
// closed, and changes nothing for a Unix-domain socket.
func (s *socket) wakeAt(bytes int) {
	_ = s.raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes) })
}

// receive receives some bytes, waiting until there are any. At end of file err is io.EOF.
func (s *socket) receive(v []ioVector) (n int, err error) {
	n, _, err = eof(s.in.do(v, true))
	return n, err
}

// whenReadable calls step whenever there may be something to receive, until it returns true.
func (s *socket) whenReadable(step func(fd uintptr) bool) error { return s.in.wait(step) }

// nap sleeps until there may be something to receive, or for a moment: then it returns false.
func (s *socket) nap(fd uintptr) bool { return s.in.nap(fd) }

// control calls f with the file descriptor, which stays open until f has returned.
func (s *socket) control(f func(fd uintptr)) error { return s.raw.Control(f) }

// receiveAt is tryReceive for the step of whenReadable and for the function of control; the caller sees to it that one
// goroutine at a time receives.
func (s *socket) receiveAt(fd uintptr, v []ioVector) (n int, again bool, err error) {
	s.in.use(v)
	s.in.block = false
	s.in.once(fd)
	return eof(s.in.result())
}

func eof(n int, again bool, err error) (int, bool, error) {
	if n == 0 && !again && err == nil {
		err = io.EOF
	}
	return n, again, err
}

// half is one direction of a socket: the system call, and what its attempts share with the one who waits for them.
type half struct {
	call   string
	number uintptr
	flags  uintptr
	wait   func(func(fd uintptr) bool) error // runs attempt whenever the socket is ready, until it returns true
	events int16                             // for poll: the socket is ready

	attempt func(fd uintptr) bool // once, bound when the socket is made: binding allocates
	message unix.Msghdr
	block   bool
	waited  bool // with Go's poller
	n       uintptr
	errno   syscall.Errno
}

func (h *half) do(v []ioVector, block bool) (n int, again bool, err error) {
	h.use(v)
	h.block = block
	if err = h.wait(h.attempt); err != nil {
		return 0, false, err
	}
	if h.waited {
		h.waited = false
		lookAround()
	}
	return h.result()
}

// result is what the last system call came to.
func (h *half) result() (n int, again bool, err error) {
	h.message.Iov = nil
	switch h.errno {
	case 0:
		return int(h.n), false, nil
	case unix.EAGAIN:
		return 0, true, nil
	}
	return 0, false, os.NewSyscallError(h.call, h.errno)
}

func (h *half) use(v []ioVector) {
	h.message.Iov = (*unix.Iovec)(unsafe.Pointer(unsafe.SliceData(v)))
	h.message.SetIovlen(min(len(v), maxGatherVectors))
}

// once makes the system call and reports whether that was it; false asks to wait and try again.
func (h *half) once(fd uintptr) bool {
	for {
		h.n, _, h.errno = unix.Syscall(h.number, fd, uintptr(unsafe.Pointer(&h.message)), h.flags)
		switch {
		case h.errno == unix.EINTR:
		case h.errno == unix.EAGAIN && h.block:
			if !h.nap(fd) {
				h.waited = true
				return false
			}
		default:
			return true
		}
	}
}

// addressOf is the address of memory that is not on a goroutine's stack, which may move. The caller keeps it alive.
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

func vectorOf(b []byte) ioVector { return ioVector{addressOf(b), uint64(len(b))} }

// extend appends a stretch of memory to v; one that begins where the last one ends makes that longer.
func extend(v []ioVector, base uintptr, length uint64) []ioVector {
	if last := len(v) - 1; last >= 0 && v[last].base+uintptr(v[last].length) == base {
		v[last].length += length
		return v
	}
	return append(v, ioVector{base, length})
}

// advance drops the first n bytes of v and any empty vectors before the rest. It changes the vectors in place.
func advance(v []ioVector, n int) []ioVector {
	left := uint64(n)
	for len(v) > 0 && left >= v[0].length {
		left -= v[0].length
		v = v[1:]
	}
	if len(v) > 0 {
		v[0].base += uintptr(left)
		v[0].length -= left
	}
	return v
}
