package tcp

import (
	"io"
	"os"
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

// trySend sends what the socket buffer takes right now, from at most maxGatherVectors vectors. again says that it
// takes nothing.
func (s *stream) trySend(v []ioVector) (n int, again bool, err error) {
	return s.out.do(v, false)
}

// send sends some bytes, waiting until the socket buffer takes any.
func (s *stream) send(v []ioVector) (n int, err error) {
	n, _, err = s.out.do(v, true)
	return n, err
}

// sendsAtOnce reports whether trySend waits for no memory.
func (s *stream) sendsAtOnce(v []ioVector) bool {
	s.out.use(v)
	defer func() { s.out.message.Iov = nil }()
	if s.out.inMemory() {
		s.out.vouch(v)
		return true
	}
	return s.out.resident()
}

// tryReceive receives what has arrived, into at most maxGatherVectors vectors that hold at least one byte. again says
// that nothing has. At end of file err is io.EOF.
func (s *stream) tryReceive(v []ioVector) (n int, again bool, err error) {
	return eof(s.in.do(v, false))
}

// receive receives some bytes, waiting until there are any. At end of file err is io.EOF.
func (s *stream) receive(v []ioVector) (n int, err error) {
	n, _, err = eof(s.in.do(v, true))
	return n, err
}

// drop receives bytes into a scratch buffer and throws them away. It returns nil after so many, or why there are no more.
func (s *stream) drop(scratch []byte, most int) error {
	v := []ioVector{vectorOf(scratch)}
	for dropped := 0; dropped < most; {
		n, err := s.receive(v)
		if err != nil {
			return err
		}
		dropped += n
	}
	return nil
}

// whenReadable calls step at once, and whenever there may be something to receive, until it returns true.
func (s *stream) whenReadable(step func() bool) error { return s.in.until(step) }

// receiveNow is tryReceive for the step of whenReadable, and while the stream is held; the caller sees to it that one
// goroutine at a time receives. touched says that the caller knows the memory to be touched a moment ago.
func (s *stream) receiveNow(v []ioVector, touched bool) (n int, again bool, err error) {
	s.in.use(v)
	if touched {
		s.in.vouch(v)
	}
	s.in.once()
	return eof(s.in.result())
}

// hold calls use, which calls receiveNow.
func (s *stream) hold(use func(uintptr)) error { return s.in.bell.hold(use) }

// look and looked enclose the time in which somebody calls receiveNow again and again: what comes meanwhile does not
// wake who waits for it. Who has looked in vain leaves it to him.
func (s *stream) look()   { s.in.bell.look() }
func (s *stream) looked() { s.in.bell.looked() }

func eof(n int, again bool, err error) (int, bool, error) {
	if n == 0 && !again && err == nil {
		err = io.EOF
	}
	return n, again, err
}

// half is one direction of a stream: the system call, and the bell for who waits for it.
type half struct {
	calls
	bell   *bell
	call   string
	number uintptr
	flags  uintptr
	events int16 // for poll: the socket is ready

	attempt func(set uintptr) bool // turn, bound when the stream is made: binding allocates
	own     func() bool            // ready, likewise
	step    func() bool            // own, or that of until
	message unix.Msghdr
	file    int    // that came, or -1
	control []byte // room for a file descriptor that comes with the first bytes; nil where none is expected any more
	block   bool
	waited  bool // for the bell
	n       uintptr
	errno   syscall.Errno
}

func (h *half) init(b *bell, call string, number, flags uintptr, events int16) {
	h.bell, h.call, h.number, h.flags, h.events, h.file = b, call, number, flags, events, -1
	h.attempt = h.turn
	h.own = h.ready
}

func (h *half) do(v []ioVector, block bool) (n int, again bool, err error) {
	h.use(v)
	h.step, h.block = h.own, block
	if err := h.wait(); err != nil {
		return 0, false, err
	}
	return h.result()
}

func (h *half) until(step func() bool) error {
	h.step, h.block = step, true
	return h.wait()
}

func (h *half) wait() error {
	err := h.bell.whenReady(h.attempt)
	if h.waited {
		h.waited = false
		h.bell.awake()
		lookAround()
	}
	return err
}

// turn takes a step, and sets the bell where that was in vain, for another turn.
func (h *half) turn(set uintptr) bool {
	for !h.step() {
		if !h.block {
			return true
		}
		if !h.nap() {
			h.waited = true
			h.bell.await(set)
			return false
		}
	}
	if !h.waited {
		h.bell.spared(set)
	}
	return true
}

// ready makes the system call, and reports whether there was no need to wait.
func (h *half) ready() bool {
	h.once()
	return h.errno != unix.EAGAIN
}

// result is what the last system call came to.
func (h *half) result() (n int, again bool, err error) {
	h.message.Iov = nil
	switch h.errno {
	case 0:
		h.keepFile()
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

// once makes the system call. It never waits for the socket, but it may for a page of the application's memory.
func (h *half) once() {
	h.errno = unix.EINTR
	for h.errno == unix.EINTR {
		if !h.raw() {
			h.told()
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
