package staging

import (
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sleepers are the threads of a copier that have nothing to do. Go wakes a goroutine that is bound to a thread by way of another
// thread, which is two wake-ups of 25 us and more, one after the other. So where there are many processors a thread sleeps in the
// kernel, and is woken directly. It keeps its place in Go's scheduler until Go's monitor takes it away, soon or after 10 ms at
// most. That would be long where there are few places: there it waits as Go does it.
type sleepers struct {
	lock   sync.Locker
	direct bool
	cond   sync.Cond  // has the same lock
	asleep []*sleeper // directly, the one that fell asleep last is at the end
}

// sleeper is what one thread sleeps on, for one time.
type sleeper struct {
	woken atomic.Uint32 // 1 when it has been woken
}

const (
	futexWait = 128 // FUTEX_WAIT_PRIVATE, of linux/futex.h
	futexWake = 129 // FUTEX_WAKE_PRIVATE
)

// wait sleeps until it is woken. The lock is held, and released meanwhile.
func (s *sleepers) wait() {
	if !s.direct {
		s.cond.Wait()
		return
	}
	own := &sleeper{}
	s.asleep = append(s.asleep, own)
	s.lock.Unlock()
	for own.woken.Load() == 0 { // a signal to the thread ends the call early
		_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&own.woken)), futexWait, 0, 0, 0, 0)
	}
	s.lock.Lock()
}

// wakeOne wakes the thread that fell asleep last, whose caches are the warmest. The lock is held.
func (s *sleepers) wakeOne() {
	if !s.direct {
		s.cond.Signal()
		return
	}
	if last := len(s.asleep) - 1; last >= 0 {
		s.asleep[last].wake()
		s.asleep = slices.Delete(s.asleep, last, last+1)
	}
}

// wakeAll wakes all threads. The lock is held.
func (s *sleepers) wakeAll() {
	s.cond.Broadcast()
	for _, each := range s.asleep {
		each.wake()
	}
	s.asleep = nil
}

func (s *sleeper) wake() {
	s.woken.Store(1)
	_, _, _ = unix.RawSyscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.woken)), futexWake, 1) // does not block
}
