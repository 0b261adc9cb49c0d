package staging

import (
	"runtime"
	"time"

	"kvferry/core/spin"
)

// How a thread of a copier waits. To wake a thread takes 5 us if it has slept for a moment, and 25 us and more if it has slept for
// a millisecond, where a short copy takes 10 us. So a thread that expects something within moments looks out for it instead:
//
//  1. watch, while copies are under way: for the end of the oldest job, and for further jobs. It is only for devices that can be
//     asked whether an event has happened.
//  2. linger, when all jobs are done and they were short: for the next one. Where there are few processors, other threads need
//     them more.
//  3. expect wakes a thread when a job is about to be started, so that it lingers by then.
//  4. Whoever starts a job wakes no thread as long as one looks out.
const (
	// watchTime is longer than a device takes for most jobs.
	watchTime = 200 * time.Microsecond
	// lingerTime is that of a session of the transport that expects the next request.
	lingerTime = 200 * time.Microsecond
	// shortBurst is the most bytes of jobs, one soon after the other, after which a thread lingers.
	shortBurst = 1 << 20
	// A job of more than bulkJob bytes in moves of bulkMove bytes and more is a part of something long: what a wake-up takes is little
	// beside that, and processor time matters more.
	bulkJob, bulkMove = 128 << 10, 32 << 10
)

// manyProcessors is the number of processors from which on a thread lingers.
var manyProcessors = 8

// attention is how the threads of a copier look out. Its lock is the copier's.
type attention struct {
	spinner spin.Spinner
	lingers bool   // there are enough processors
	looking int    // threads that look out for the next job
	burst   uint64 // bytes of the jobs since a thread last lingered, or slept
	expects bool   // a job is about to be started
}

func newAttention() attention {
	return attention{spinner: spin.Spinner{Contention: spin.Process()}, lingers: runtime.GOMAXPROCS(0) >= manyProcessors}
}

// note counts a job that is issued.
func (a *attention) note(j *Job) {
	bytes := j.bytes()
	a.burst += bytes
	if bytes > bulkJob && bytes/uint64(len(j.Moves)) >= bulkMove {
		a.burst += shortBurst
	}
}

// watch looks out for the end of the oldest job, and for a new one. It returns false if neither has come for a while: then the
// thread should sleep. The lock is held, and released meanwhile.
func (c *copier) watch() bool {
	if !c.asks {
		return false
	}
	oldest, started := *c.flight.first(), c.started.Load()
	if oldest.err != nil || !oldest.queued {
		return false
	}
	c.completing = true
	c.looking++
	c.mu.Unlock()
	found := spin.Until(watchTime, spin.Process(), func() bool {
		if c.started.Load() != started {
			return true
		}
		oldest.happened, oldest.failed = oldest.event.Wait(0)
		return oldest.happened || oldest.failed != nil
	})
	c.mu.Lock()
	c.completing = false
	c.looking--
	*c.flight.first() = oldest
	return found
}

// linger waits until there may be something to do. The lock is held, and released meanwhile.
func (c *copier) linger() {
	short := c.burst == 0 && c.expects || c.burst > 0 && c.burst <= shortBurst
	c.burst, c.expects = 0, false
	if !c.lingers || !short || c.looking > 0 || c.closing {
		c.work.wait()
		return
	}
	started := c.started.Load()
	c.looking++
	c.mu.Unlock()
	c.spinner.SpinBriefly(lingerTime, func() bool { return c.started.Load() != started })
	c.mu.Lock()
	c.looking--
}

// expect wakes a thread if all of them sleep.
func (c *copier) expect() {
	if !c.lingers {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.looking > 0 || c.issuing || c.expects || c.queue.len()+c.flight.len() > 0 {
		return
	}
	c.expects = true
	c.work.wakeOne()
}
