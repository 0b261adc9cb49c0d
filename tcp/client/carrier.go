package client

import (
	"context"
	"slices"
	"time"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/metrics"
	"kvferry/core/security"
	"kvferry/tcp/samehost"
)

// carrier takes a peer's pieces over the network: a lane, or a one-shot carrier.
type carrier interface {
	// traffic is how many bytes it has sent and received.
	traffic() uint64
	// carriesAborted reports whether it holds a piece of an aborted work.
	carriesAborted() bool
	// describe adds its state to that of its peer.
	describe(*metrics.PeerState)
	// quit makes it end: it stops moving bytes, and gives back what it holds with that reason.
	quit(reason error)
}

// pipelined is a carrier that has many requests in flight, and on which other goroutines may send and receive.
type pipelined interface {
	carrier
	// idle reports whether it is connected and holds nothing.
	idle() bool
	// lastUsed is about when it last had something to send, if it is idle.
	lastUsed() (when time.Time, idle bool)
	// load is how many bytes it holds.
	load() uint64
	// waitsFor are the works whose local memory a system call of it may be waiting for.
	waitsFor() []*core.Work
	// wake tells it that there may be something to take.
	wake()
	// writeIfIdle has the calling goroutine send what there is to take, without waiting, and reports whether it did.
	writeIfIdle() bool
	// mayBeAssisted reports whether another goroutine may receive on it: no memory may have to be brought in first.
	mayBeAssisted() bool
	// renewIfStale renews it if its connection has not begun by what is in force now.
	renewIfStale(by *security.Policy)
	// assist has the calling goroutine receive what has come, without waiting. The carrier holds something.
	assist()
	// assistAsleep is assist after the calling thread has slept until something may have come, for at most so long. It does not
	// sleep when done returns true. It returns false where the thread may not sleep, or another one receives.
	assistAsleep(most time.Duration, done func() bool) bool
	// expect has the goroutine that sends the next request on it begin to spin before that, on behalf of the caller, who calls
	// end when it does not wait for the answer any more.
	expect() (end func())
	// setSpinning says whether another goroutine assists again and again, so that its own need not wake up.
	setSpinning(bool)
}

// source is all that a carrier knows of its peer.
type source interface {
	// take moves pieces from the queue to the end of taken: at most so many, and no more once they have that many bytes, or
	// the carrier has its share of the bytes in flight. to is the engine that the carrier is connected to.
	take(c carrier, to destination, taken []piece, pieces int, bytes uint64) []piece
	// putBack queues pieces again that were taken, or answered, but not moved.
	putBack(pieces []piece)
	// hasQueued reports whether there is something to take.
	hasQueued() bool
	// connect makes a connection for one piece, or, if that is nil, for requests that are pipelined on it. If the piece may not go
	// to the engine that answers, the error is errNotCarried: the peer has settled or blocked the piece, and the carrier drops it.
	connect(ctx context.Context, only *piece) (*connection, error)
	// overtake has others take over from a carrier that takes nothing more: it waits for a page, or it is renewed.
	overtake(c carrier, renewed bool)
	// ended takes a carrier off the list, ends its connection, and queues its pieces again or fails them.
	ended(c carrier, e ending)
}

// ending is how a carrier has ended.
type ending struct {
	reason      error
	unreachable bool    // it could not connect
	held        []piece // were in flight, or about to be; not settled

	conn       *connection // if it is to be ended, too
	unanswered []piece     // the WRITEs on it of which something was sent, and nothing was acknowledged
}

// environment is what the carriers of a peer share.
type environment struct {
	ctx     context.Context // ends with the client
	config  *core.Config
	segment *core.Segment
	limiter *samehost.CopyLimiter
	fence   *fence

	stuckTimeout time.Duration // how long a lane may take to end; 0 for stuckTimeout
	counters
}

// destination is the engine that a carrier is connected to.
type destination struct {
	owner  *metadata.Descriptor // nil where it connects later
	target string               // as targetKey names the engine
	there  time.Duration        // see connection
	runs   uint64               // bytes of the longest runs that go there in strided requests; 0 where it takes none
}

// carriers is a list of carriers, and of the lanes among them. It never changes.
type carriers struct {
	all   []carrier
	lanes []pipelined
}

func (l *carriers) without(c carrier) *carriers {
	return newCarriers(slices.DeleteFunc(slices.Clone(l.all), func(other carrier) bool { return other == c }))
}

func newCarriers(all []carrier) *carriers {
	l := &carriers{all: all}
	for _, c := range all {
		if lane, ok := c.(pipelined); ok {
			l.lanes = append(l.lanes, lane)
		}
	}
	return l
}
