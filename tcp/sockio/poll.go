package sockio

import (
	"sync/atomic"
	"time"
	"unsafe"

	"kvferry/core/clock"
	"kvferry/core/spin"

	"golang.org/x/sys/unix"
)

// Go has one thread at a time wait for all sockets. When a socket is ready, that thread goes on with the goroutine that
// waits for it, and has to wake other threads for the other goroutines and for the waiting. While the goroutine makes one
// system call after the other, nobody may look at the sockets for 10 ms. With few processors this uses them best. With many:
//
//  1. pollBriefly has the thread of the goroutine that wants to wait sleep in the kernel until its own socket is ready, for
//     at most pollTime.
//  2. Only then the goroutine waits with Go's poller. When it goes on, wakePoller has another thread wait for the sockets.
const (
	// pollTime is longer than a peer pauses in the middle of a transfer, and short enough that a deadline or Close may
	// wait for its end.
	pollTime = time.Millisecond
	// manyProcessors is the number of processors from which on a poll is worth its thread, and so is another lane for
	// fewer bytes.
	manyProcessors = 8
)

// Processors counts the machine's processors and the threads that poll sockets, and knows when they are contended. All sockets
// of a process share one: a thread that polls keeps the place of a goroutine that could run, so at most half as many poll as there
// are processors.
type Processors struct {
	*spin.Contention
	count   int
	polling atomic.Int32
	sockets pollset // for sockets whose threads do not poll
}

// NewProcessors is for a machine, or a share of one, with so many processors.
func NewProcessors(count int) *Processors {
	return &Processors{Contention: spin.Process(), count: count}
}

// Count is how many processors there are.
func (p *Processors) Count() int { return p.count }

// Abound reports whether there are processors for more threads: many of them, which no other program wants.
func (p *Processors) Abound() bool { return p.count >= manyProcessors && !p.Holds(clock.Now()) }

// pollBriefly sleeps until the socket may be ready, and reports whether it may. It returns false at once where there are too
// few processors, or too many threads that poll.
func (d *direction) pollBriefly() bool {
	if d.processors.count < manyProcessors {
		return false
	}
	ready, _ := d.poll(pollTime)
	return ready
}

// poll has the calling thread sleep until the socket may be ready, for at most so long. may is false, and the thread has not slept,
// where there are too many threads that poll.
func (d *direction) poll(most time.Duration) (ready, may bool) {
	defer d.processors.polling.Add(-1)
	if int(d.processors.polling.Add(1)) > d.processors.count/2 {
		return false, false
	}
	which := unix.PollFd{Fd: int32(d.socket), Events: d.events}
	left := unix.NsecToTimespec(int64(most))
	n, _, _ := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&which)), 1, uintptr(unsafe.Pointer(&left)), 0, 0, 0)
	return n == 1, true
}

// wakePoller is called after a wait with Go's poller. To start a goroutine wakes a thread. When the thread finds nothing
// else to do, it waits for the sockets.
func (d *direction) wakePoller() {
	if d.processors.count >= manyProcessors {
		go func() {}()
	}
}
