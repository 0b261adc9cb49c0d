// Package threads limits the threads that Go's runtime needs, and starts them before they are needed.
//
// Go starts a thread when goroutines are ready to run and its other threads are in system calls, and ends the process when
// the system refuses to start it: a container's pids limit and RLIMIT_NPROC count threads, and other processes may take the
// rest at any time. So:
//
//  1. The caller checks, in C, that the system allows as many threads as are needed: Go code could need one meanwhile. Then Reserve
//     makes Go start them. Go keeps its threads for as long as the process runs.
//  2. System calls that may take long are enclosed by Enter and Leave, so that only so many threads are in one at a time.
//     A further call waits until one of them ends.
//  3. Some of these calls may never end, because a page is never loaded. If none has ended for a while, one more may enter, and
//     another thread is started for it, if the system allows that.
//
// Short system calls are not limited. The spare threads are for them, for Go's own threads, and for the C library when it resolves
// names.
package threads

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// share is a number of threads for each purpose, besides those for running goroutines: calls that may take long and are let in at
// the same time, and spare threads.
type share struct{ calls, spare int }

// ways are the share that slows nothing down, and smaller ones for a system that allows fewer threads.
var ways = []share{{16, 16}, {8, 8}, {2, 6}}

// growAfter is how long one more call waits before another thread is started for it.
const growAfter = 10 * time.Millisecond

// Probe says why the system would not start so many more threads now; nil if it would.
type Probe func(threads int) error

var (
	starting sync.Mutex
	probe    Probe // nil before Reserve
	reserved share

	inside  atomic.Int64 // calls that have entered and not ended
	waiting atomic.Int64 // calls that wait to enter
	allowed atomic.Int64 // most calls that may be inside; 0 for no limit, before Reserve
	freed   = make(chan struct{}, 1)
)

func (s share) threads() int {
	processors := runtime.GOMAXPROCS(0)
	return processors + processors/2 + s.calls + s.spare // half as many may sleep for a moment while they poll
}

// Wanted is how many threads one of the ways to reserve them needs. The ways are numbered from 0 on, and each needs fewer threads
// than the one before. It returns 0 when there are no more ways, or Reserve was already called.
func Wanted(way int) int {
	starting.Lock()
	defer starting.Unlock()
	if probe != nil || way >= len(ways) {
		return 0
	}
	return ways[way].threads()
}

// Reserve makes Go start the threads of one of the ways. The caller has just checked that the system allows them. Later calls do
// nothing. p is used for threads that are started later.
func Reserve(way int, p Probe) {
	starting.Lock()
	defer starting.Unlock()
	if probe != nil {
		return
	}
	start(ways[way].threads())
	probe, reserved = p, ways[way]
	allowed.Store(int64(reserved.calls))
}

// start makes sure that Go has so many threads that are not in a system call: it binds each of them to a goroutine, all at the same
// time.
func start(threads int) {
	var bound, released sync.WaitGroup
	bound.Add(threads)
	release := make(chan struct{})
	for range threads {
		released.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			bound.Done()
			<-release
		})
	}
	bound.Wait()
	close(release)
	released.Wait()
}

// Enter waits until the caller may make a system call that may take long. The caller calls Leave after it.
func Enter() {
	if !tryEnter() {
		await()
	}
}

// Leave ends what Enter began.
func Leave() {
	inside.Add(-1)
	wakeOne()
}

func tryEnter() bool {
	if most := allowed.Load(); inside.Add(1) <= most || most == 0 {
		return true
	}
	Leave()
	return false
}

// await waits until a call may enter, and enters.
func await() {
	waiting.Add(1)
	timer := time.NewTimer(growAfter)
	defer timer.Stop()
	for !tryEnter() {
		select {
		case <-freed:
		case <-timer.C:
			grow()
			timer.Reset(growAfter)
		}
	}
	waiting.Add(-1)
	wakeOne() // perhaps the next one may enter, too
}

// wakeOne wakes one waiting call, if it may enter.
func wakeOne() {
	if waiting.Load() == 0 || inside.Load() >= allowed.Load() {
		return
	}
	select {
	case freed <- struct{}{}:
	default:
	}
}

// grow allows one more call, if the system allows another thread.
func grow() {
	starting.Lock()
	defer starting.Unlock()
	if inside.Load() < allowed.Load() || probe(1) != nil {
		return
	}
	start(reserved.threads() - reserved.calls + 1)
	allowed.Add(1)
}
