package server

import (
	"kvferry/core/staging"
	"kvferry/tcp/wire"
)

// A load moves bytes between one staging block and a device: a lease, and the job that moves parts of requests through it.
//
//  1. takes says whether a request finds room in the load. If not, the session ends the turn, and opens another load (staged.go).
//  2. grow adds bytes to the load's last move, as the session receives or owes them.
//  3. launch starts the job.
//  4. outcome waits for the job. If it failed, outcome does it again part by part, to find the part to blame (sender.go).
//  5. release gives the lease back.

// route is a way between a device and the network.
type route struct {
	device *staging.Device
	way    staging.Direction
}

// load is one lease and the job that moves bytes through it.
type load struct {
	route
	lease   *staging.Lease
	end     uint64 // of the last move, in the lease
	growing bool   // the last move is of the request that is being served
	parts   []part // of requests, one for each move
	moves   []staging.Move
	runs    uint64 // of the strided moves, or somewhat more
	job     staging.Job
	running bool
	done    chan error // from the job
	err     error      // the result of the job
}

// part is the piece of one request that goes through a load.
type part struct {
	wire.Header
	vector  int  // the first of the turn's send vectors that must wait for the move
	started bool // it is a READ whose answer has begun in a turn before
}

func newLoad() *load {
	l := &load{done: make(chan error, 1)}
	l.job.Done = func(err error) { l.done <- err }
	return l
}

// takes reports whether the load has room for some of a request that it has bytes of already, or for all of a new one.
func (l *load) takes(rest wire.Header, to route) bool {
	switch {
	case l.lease == nil || l.route != to:
		return false
	case l.growing:
		return l.end < l.lease.Length
	}
	at := l.device.Place(l.end, uintptr(rest.Addr), rest.Length)
	return at < l.lease.Length && rest.Length <= l.lease.Length-at
}

// grow adds n bytes to the last move and takes them off the rest of its request.
func (l *load) grow(rest *wire.Header, n uint64) {
	l.moves[len(l.moves)-1].Length += n
	l.end += n
	rest.Addr += n
	rest.Length -= n
}

// growRuns is grow for a strided move.
func (l *load) growRuns(rest *wire.Header, n uint64) {
	l.grow(rest, n)
	l.runs += n/l.last().Runs.Run + 1
}

// last is the last move.
func (l *load) last() *staging.Move { return &l.moves[len(l.moves)-1] }

// launch starts the job, if there is something to move.
func (l *load) launch() {
	last := len(l.moves) - 1
	if last >= 0 && l.moves[last].Length == 0 { // of a payload of which nothing has come
		l.moves, l.parts = l.moves[:last], l.parts[:last]
	}
	if len(l.moves) == 0 {
		l.release()
		return
	}
	l.start(l.moves)
}

func (l *load) start(moves []staging.Move) {
	l.job.Moves = moves
	l.running = true
	l.device.Start(l.way, &l.job)
}

// wait returns what the job came to.
func (l *load) wait() error {
	if l.running {
		l.err = <-l.done
		l.running = false
	}
	return l.err
}

// finished reports whether the job is done. wait returns at once then.
func (l *load) finished() bool { return !l.running || len(l.done) > 0 }

// outcome is how many parts the job has moved, and what was wrong with the next. Nothing is known of any part after a
// job has failed, so each is moved by itself up to the one that is to blame. When all of them succeed then, there is
// still a reason: that of the first time.
func (l *load) outcome() (done int, reason error) {
	reason = l.wait()
	switch {
	case reason == nil:
		return len(l.parts), nil
	case len(l.parts) == 1:
		return 0, reason
	}
	for i := range l.parts {
		l.start(l.moves[i : i+1])
		if err := l.wait(); err != nil {
			return i, err
		}
	}
	return len(l.parts), reason
}

// release gives the lease back when no copy touches it any more.
func (l *load) release() {
	if l.lease == nil {
		return
	}
	_ = l.wait() // what it came to has been said, or matters to nobody any more
	l.lease.Release()
	l.route, l.lease, l.end, l.growing, l.runs, l.err = route{}, nil, 0, false, 0, nil
	l.parts, l.moves = l.parts[:0], l.moves[:0]
}
