// Package threads bounds the threads that Go's runtime needs, and has them exist before they are needed.
//
// Go starts a thread when goroutines are ready to run and its other threads are in system calls, and ends the process when
// the system refuses to start it: a container's pids limit and RLIMIT_NPROC count threads, and other processes may take the
// rest at any time. So:
//
//  1. The caller makes sure that the system allows as many threads as are needed, without Go, which could need one meanwhile.
//     Reserve has Go start them. Go keeps the threads that it has, so they are there for as long as the process.
//  2. System calls that may take long are enclosed by Enter and Leave, so that only so many threads are in one at a time.
//     A further call waits until one of them ends.
//  3. Some of these calls may never end, as their pages do not come. Where none has ended for a while, one more is let in,
//     for which another thread is started, if the system allows it.
//
// What is not bounded are short system calls. The spare threads are for them, for Go's own threads, and for the C library's
// look-up of names.
package threads

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// share is how threads are given out: calls that may take long are let in so many at a time, and so many threads are spare,
// beside those and the ones for goroutines that run.
type share struct{ calls, spare int }

// ways are the share that slows nothing down, and those to do with where the system allows fewer threads.
var ways = []share{{16, 16}, {8, 8}, {2, 6}}

// patience is how long one more call waits before another thread is started for it.
const patience = 10 * time.Millisecond

// Probe tells why the system would not start so many more threads now; nil when it would.
type Probe func(threads int) error

var (
	starting sync.Mutex
	probe    Probe // nil before Reserve
	reserved share

	inside  atomic.Int64 // calls that were let in and have not ended
	waiting atomic.Int64 // those that wait to be let in
	allowed atomic.Int64 // how many may be; 0 for no bound, before Reserve
	freed   = make(chan struct{}, 1)
)

func (s share) threads() int {
	processors := runtime.GOMAXPROCS(0)
	return processors + processors/2 + s.calls + s.spare // every other processor may have one that polls, see tcp/sockio/poll.go
}

// Wanted is how many threads are to be had for one of the ways to reserve them, from 0 on, each with fewer threads than the one
// before; 0 for none, or when Reserve has been called.
func Wanted(way int) int {
	starting.Lock()
	defer starting.Unlock()
	if probe != nil || way >= len(ways) {
		return 0
	}
	return ways[way].threads()
}

// Reserve has Go start the threads of one of the ways, which the system was found to allow a moment ago. Later calls do
// nothing. p is for the threads that are started later.
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

// start makes sure that Go has so many threads that are not in a system call. Each is bound to a goroutine for a moment, all
// at the same time.
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

// Enter returns when the caller may make a system call that may take long. Leave follows it.
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

// await enters when there is room.
func await() {
	waiting.Add(1)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for !tryEnter() {
		select {
		case <-freed:
		case <-timer.C:
			grow()
			timer.Reset(patience)
		}
	}
	waiting.Add(-1)
	wakeOne() // there may be room for the next one, too
}

// wakeOne wakes one waiting call, if there is room for it.
func wakeOne() {
	if waiting.Load() == 0 || inside.Load() >= allowed.Load() {
		return
	}
	select {
	case freed <- struct{}{}:
	default:
	}
}

// grow lets one more call in, when the system has another thread for it.
func grow() {
	starting.Lock()
	defer starting.Unlock()
	if inside.Load() < allowed.Load() || probe(1) != nil {
		return
	}
	start(reserved.threads() - reserved.calls + 1)
	allowed.Add(1)
}
