package client

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core"
	"kvferry/core/clock"
	"kvferry/core/hostmem"
	"kvferry/core/status"
	"kvferry/core/trace"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// A lane is a long-lived connection to a peer on which requests are pipelined.
//
//  1. run connects, and starts the writer.
//  2. write takes pieces from the peer's queue within the lane's window, and sends their headers and payloads, as many as
//     there are in one system call (lane_send.go). The lane's writer calls it, or a submitter that finds the lane idle.
//  3. receive waits for the status frames and payloads of what is in flight, and receives them into their places, as many as
//     have come in one system call (lane_receive.go). A piece that has got its whole answer is settled.
//  4. When the connection ends, receive returns. run waits until nobody sends any more, and hands the connection and the
//     pieces that were in flight to the peer (source.ended).
//
// On one host, pieces may also travel by address (lane_fetch.go). A lane that waits for a page is overtaken, and given up if it
// has to end (lane_stuck.go). Other works do not wait for its page (lane_apart.go). A lane on which nothing moves is ended
// (lane_watch.go).
const (
	// windowPieces and windowBytes bound what is in flight on a lane.
	windowPieces = 1024
	windowBytes  = 8 << 20
	// sendPieces and sendBytes bound what is taken from the queue at once. A header and a payload for each piece fill a sendmsg.
	sendPieces = sockio.MaxVectors / 2
	sendBytes  = 1 << 20
	// receivePieces bounds the pieces whose answers are received at once.
	receivePieces = 256
	// lastAnswers is how long a lane that cannot send any more waits for answers that are under way.
	lastAnswers = time.Second
)

var (
	errRefused    = errors.New("the peer refused a request before this one")
	errAborted    = errors.New("a request on the same connection was given up")
	errBadLocal   = errors.New("local memory cannot be accessed")
	errStalled    = core.ErrStalled
	errRetired    = errors.New("the peer closed an idle connection")
	errPeerClosed = errors.New("the peer closed the connection")
	errOutdated   = errors.New("the peer takes no pipelined requests any more")
	errLaneEnded  = errors.New("the lane has ended")
)

// lane: see above. The end of a lane has these steps, and each sets a field:
//
//  1. broken: nothing more is sent. Sending has failed (endSending), or quit was called. In the first case answers that are under
//     way are still received, for lastAnswers.
//  2. failure: nothing more is received. The goroutine that received sets it, or retire.
//  3. over: quit was called. run does so when receive has returned, and others do to end the lane: an abort, the watchdog, the
//     peer. No answer is waited for any more.
//  4. retired: the receiver and the writer have ended, and the lane is empty. source.ended gets its pieces.
//
// If 4 does not come in time after 3, giveUpStuck sets stuck, settles the pieces, and closes givenUp. retired follows when the
// system call has returned.
//
// Each group of fields is under the lock before it, except where a comment says otherwise.
type lane struct {
	*environment
	source  source
	ctx     context.Context // ends connect
	cancel  context.CancelFunc
	wakeups chan struct{} // for the writer; closed by nobody
	moved   atomic.Uint64 // bytes sent and received

	writing sync.Mutex      // held by the goroutine that sends
	headers []byte          // of the pieces in unsent
	vectors []sockio.Vector // backing of unsent
	unsent  []sockio.Vector // of the pieces taken, and not sent yet
	taken   []piece         // scratch of write
	most    int             // pieces that are taken at once: few after some were queued again, so that few are queued again (apart)
	careful bool            // one vector at a time is sent
	packed  []byte          // payloads of strided WRITEs in unsent
	packer  hostmem.Copier

	mu        sync.Mutex
	conn      *connection   // nil before the connection is up
	flight    ring[piece]   // oldest first
	tookAt    trace.Moment  // when the pieces that are being laid out were taken, for the trace
	flying    atomic.Uint64 // their bytes; changed under the lock
	coldReads atomic.Int32  // READs among them whose memory may have to be brought in
	scattered atomic.Int32  // READs among them that are strided
	laidOut   uint64        // length of the stream of frames so far
	sent      uint64        // how far it is sent
	sending   *sync.Cond    // sent or broken has changed
	broken    error         // why the lane ends
	over      bool          // quit was called: the lane waits for no answers

	// See lane_stuck.go.
	inHand, copying []piece      // taken, and neither in flight nor settled; those in copying are being copied
	stuckTimer      *clock.Steps // set by quit
	retired         bool
	stuck           *stuck        // set when the lane was given up while a system call used its memory
	givenUp         chan struct{} // closed when giveUpStuck has done with the lane

	expected expected // answers that callers are going to receive themselves

	renewing   atomic.Bool // it takes nothing more, see renew.go; changed under the lock
	renewTimer *time.Timer

	watching bool // the watchdog is armed
	watchdog *time.Timer

	lastMoved uint64 // moved, when the watchdog saw it change
	movedAt   time.Time

	peerMemory peerMemory // of a peer on this host

	receiving  sync.Mutex // held by the goroutine that receives: the receiver, or one that assists
	onReadable func() bool
	onAssist   func()
	failure    error        // why nothing can be received any more
	cameAt     trace.Moment // when something was received last, for the trace
	statuses   [receivePieces * wire.StatusSize]byte
	got        uint64 // bytes that have come of the oldest piece's answer
	alone      bool   // one answer at a time is received
	planned    plan
	unpacked   []byte // payloads of strided READs are received here
	unpacker   hostmem.Copier
}

func newLane(s source, e *environment) *lane {
	l := &lane{
		environment: e, source: s, wakeups: make(chan struct{}, 1),
		headers: make([]byte, 0, sendPieces*wire.HeaderSize), most: sendPieces,
	}
	l.ctx, l.cancel = context.WithCancel(e.ctx)
	l.sending = sync.NewCond(&l.mu)
	l.onReadable = l.readable
	l.onAssist = l.assistHeld
	l.expected.onEnd = l.endExpect
	l.watchdog = time.AfterFunc(time.Hour, l.watch)
	l.watchdog.Stop()
	return l
}

// run runs the lane from its connection to its end.
func (l *lane) run() {
	defer l.cancel()
	if err := l.connect(); err != nil {
		l.source.ended(l, ending{reason: err, unreachable: true})
		return
	}
	var writer sync.WaitGroup
	writer.Go(l.serveQueue)
	l.quit(status.Guard(l.receive))
	writer.Wait()
	held, unanswered, reason := l.retire()
	l.segment.Disconnected()
	if l.stuck != nil { // all was settled already
		l.endStuck(reason)
		return
	}
	l.source.ended(l, ending{reason: reason, held: held, conn: l.conn, unanswered: unanswered})
}

func (l *lane) connect() error {
	conn, err := l.source.connect(l.ctx, nil)
	if err != nil {
		return err
	}
	l.mu.Lock()
	if l.broken != nil {
		defer l.mu.Unlock()
		_ = conn.Close()
		conn.release()
		return l.broken
	}
	l.conn = conn
	l.peerMemory.Process, l.peerMemory.permit, l.peerMemory.copies = conn.process, conn.permit, samehost.NewCopies(l.limiter)
	conn.SetLibraryMemory(sockio.VectorOf(l.statuses[:]), sockio.VectorOf(l.headers[:cap(l.headers)]))
	l.mu.Unlock()
	l.segment.Connected()
	return nil
}

func (l *lane) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil && l.broken == nil && l.flight.len() == 0 && !l.renewing.Load()
}

func (l *lane) lastUsed() (when time.Time, idle bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.movedAt, l.conn != nil && l.broken == nil && l.flight.len() == 0
}

func (l *lane) load() uint64 { return l.flying.Load() }

func (l *lane) traffic() uint64 { return l.moved.Load() }

func (l *lane) waitsForPage() bool { return l.coldReads.Load() > 0 }

func (l *lane) mayBeAssisted() bool { return l.coldReads.Load() == 0 && l.scattered.Load() == 0 }

func (l *lane) wake() {
	select {
	case l.wakeups <- struct{}{}:
	default:
	}
}

// lost names the connection in an error.
func (l *lane) lost(err error) error {
	return status.Errorf(status.Socket, "segment %q (%v): %w", l.segment.Name, l.conn.Remote, err)
}

func badLocal(p *piece, err error) error {
	return status.Errorf(status.InvalidArgument, "%w at %v: %w", errBadLocal, p.localRange(), err)
}

// quit: see carrier. The lane's own goroutines see the connection fail. The first reason counts, except that a refusal by the
// peer explains why the peer then closed the connection.
func (l *lane) quit(reason error) {
	l.mu.Lock()
	if l.broken == nil || errors.Is(reason, errRefused) {
		l.broken = reason
	}
	l.over = true
	if l.stuckTimer == nil && l.conn != nil {
		l.stuckTimer = clock.AfterSteps(cmp.Or(l.stuckTimeout, stuckTimeout), l.giveUpStuck)
	}
	conn := l.conn
	l.mu.Unlock()
	l.cancel()
	l.sending.Signal()
	if conn != nil {
		_ = conn.SetDeadline(sockio.Past)
	}
}

func (l *lane) carriesAborted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.flight.len() {
		if l.flight.at(i).work.Aborted() != nil {
			return true
		}
	}
	return slices.ContainsFunc(l.copying, func(piece piece) bool { return piece.work.Aborted() != nil })
}

// retire empties the lane after its receiver and writer have ended. Nothing of this process touches the memory of the pieces
// from then on: a goroutine that comes late to send or to assist finds the lane broken. unanswered are the WRITEs among them
// of which something was sent.
func (l *lane) retire() (held, unanswered []piece, reason error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.receiving.Lock()
	defer l.receiving.Unlock()
	l.failure = errLaneEnded
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchdog.Stop()
	l.retired = true
	if l.stuckTimer != nil {
		l.stuckTimer.Stop()
	}
	if l.renewTimer != nil {
		l.renewTimer.Stop()
	}
	held, unanswered = l.empty()
	l.unsent = nil
	if errors.Is(l.broken, errStalled) {
		for i := range held {
			held[i].fatal = cmp.Or(held[i].fatal, l.broken)
		}
	}
	return held, unanswered, l.broken
}

// empty removes everything that is in flight. unanswered are the WRITEs of which something was sent. The
// lock is held.
func (l *lane) empty() (held, unanswered []piece) {
	for l.flight.len() > 0 {
		piece := l.flight.pop()
		if piece.op == core.Write && piece.end-piece.frame() < l.sent {
			unanswered = append(unanswered, piece)
		}
		piece.work.Trace().Lost(piece.step, piece.length)
		held = append(held, piece)
	}
	l.flying.Store(0)
	l.coldReads.Store(0)
	l.scattered.Store(0)
	return held, unanswered
}
