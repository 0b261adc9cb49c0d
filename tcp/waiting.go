package tcp

import (
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Waiting for a socket. Go has one thread at a time wait for all sockets. When one is ready that thread goes on with the
// goroutine that waits for it, and others have to be woken for the rest, and for the waiting: while a goroutine that was
// woken makes one system call after the other, nobody may look at the sockets for 10 ms. With few processors that is how
// they are used best. With many of them:
//
//  1. nap has the thread that wants to wait sleep in the kernel, until its own socket is ready or for napTime.
//  2. Only then it waits as others do. When it goes on, lookAround has another thread wait for the sockets.
const (
	// napTime is longer than a peer pauses amid a transfer, and short enough for a deadline or Close to wait for its end.
	napTime = time.Millisecond
	// manyProcessors is from where on there are some to spare.
	manyProcessors = 8
)

var (
	processors = runtime.GOMAXPROCS(0)
	// nappers counts who naps. There are bounds to it: each keeps a thread, and the place of a goroutine that could run.
	nappers atomic.Int32
)

// nap sleeps until the socket may be ready. It returns false where it did not, or not long enough.
func (h *half) nap() bool {
	if processors < manyProcessors {
		return false
	}
	defer nappers.Add(-1)
	if int(nappers.Add(1)) > processors/2 {
		return false
	}
	which := unix.PollFd{Fd: int32(h.bell.socket), Events: h.events}
	left := unix.NsecToTimespec(int64(napTime))
	n, _, _ := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&which)), 1, uintptr(unsafe.Pointer(&left)), 0, 0, 0)
	return n == 1
}

// lookAround is called by who has waited for a socket with Go's poller: to start a goroutine wakes a thread, which waits
// for the sockets when it finds nothing else to do.
func lookAround() {
	if processors >= manyProcessors {
		go func() {}()
	}
}
