package client

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/trace"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// The receiving half of a lane:
//
//  1. receive, on the lane's own goroutine, and assist, on the goroutine of a caller that waits, take turns at receiveOnce.
//  2. plan lays out the places of the answers to what is in flight. One system call receives them there.
//  3. consume follows the bytes that came: checkStatus for each status frame, settleOldest for each complete answer.
//  4. blameReceiver explains why nothing more comes.

// receive reads answers until the connection ends, and returns why.
func (l *lane) receive() error {
	for {
		waitErr := l.conn.WhenReadable(l.onReadable)
		l.receiving.Lock()
		failure := l.failure
		l.receiving.Unlock()
		if failure != nil {
			return failure
		}
		if waitErr != nil {
			return l.blameReceiver(waitErr)
		}
		if l.source.hasQueued() {
			l.wake() // the window has room again
		}
	}
}

// readable is the receiver's step. It reports whether it has received something, or nothing ever will come.
func (l *lane) readable() bool {
	l.receiving.Lock()
	defer l.receiving.Unlock()
	return l.failure != nil || l.receiveOnce((*sockio.Socket).ReceiveNow)
}

// assist: see pipelined. It spares the calling goroutine a wake-up by the receiver. That goroutine must not wait for a page of a
// transfer that is being sent. The lane has something in flight, so it is connected.
func (l *lane) assist() {
	if !l.receiving.TryLock() {
		return
	}
	defer l.receiving.Unlock()
	if l.failure == nil {
		_ = l.conn.Hold(l.onAssist) // fails on what is closed
	}
}

// assistAsleep: see pipelined. While it sleeps nobody else receives, so nobody else ends what it waits for on this lane.
func (l *lane) assistAsleep(most time.Duration, done func() bool) bool {
	if !l.receiving.TryLock() {
		return false
	}
	defer l.receiving.Unlock()
	if done() {
		return true
	}
	if l.failure != nil || !l.conn.SleepUntilReadable(most) {
		return false
	}
	_ = l.conn.Hold(l.onAssist) // fails on what is closed
	return true
}

// assistHeld is assist while the stream is held.
func (l *lane) assistHeld() {
	received := l.receiveOnce((*sockio.Socket).ReceiveUnheld)
	for received && l.failure == nil && l.conn.Buffers() { // nobody else is woken for it
		if !l.receiveOnce((*sockio.Socket).ReceiveUnheld) {
			break
		}
	}
	switch {
	case !received:
	case l.failure != nil:
		_ = l.conn.SetReadDeadline(sockio.Past) // for the receiver to see it
	case l.source.hasQueued():
		l.wake() // the window may have room again, and the receiver has seen nothing
	}
}

// setSpinning: see pipelined. The lane has something in flight, so it is connected.
func (l *lane) setSpinning(on bool) {
	if on {
		l.conn.BeginSpin()
	} else {
		l.conn.EndSpin()
	}
}

// expected is the state of callers that are about to send a request and to receive the answer.
type expected struct {
	callers  atomic.Int32 // changed under the lock
	mu       sync.Mutex
	spinning bool   // on their behalf
	onEnd    func() // endExpect, bound when the lane is made: binding allocates
}

// expect: see pipelined.
func (l *lane) expect() (end func()) {
	l.expected.mu.Lock()
	defer l.expected.mu.Unlock()
	l.expected.callers.Add(1)
	return l.expected.onEnd
}

// endExpect ends what expect began.
func (l *lane) endExpect() {
	e := &l.expected
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.callers.Add(-1) == 0 && e.spinning {
		e.spinning = false
		l.setSpinning(false)
	}
}

// spinIfExpected is called before a request is sent. The lane is connected.
func (l *lane) spinIfExpected() {
	e := &l.expected
	if e.callers.Load() == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.callers.Load() > 0 && !e.spinning {
		e.spinning = true
		l.setSpinning(true)
	}
}

// receiveOnce receives what has come by a call of the socket, and settles what is complete. It returns false when nothing has come.
// The lock for receiving is held.
func (l *lane) receiveOnce(receive func(s *sockio.Socket, v []sockio.Vector, touched bool) (n int, again bool, err error)) bool {
	var n int
	var again bool
	var err error
	v, touched := l.plan()
	l.overtakable(l.waitsForPage(), func() { n, again, err = receive(l.conn.Socket, v, touched) })
	switch {
	case again:
		return false
	case errors.Is(err, syscall.EFAULT) && !l.alone:
		l.alone = true // the kernel does not say whose memory it was: the next time it is the oldest piece's
		l.planned.vectors = l.planned.vectors[:0]
	case err != nil:
		l.failure = l.blameReceiver(err)
	default:
		l.moved.Add(uint64(n))
		l.failure = l.consume(uint64(n))
		switch {
		case l.renewing.Load():
			l.endIfDone()
		case l.conn.Worn():
			l.renew()
		}
	}
	return true
}

// plan is the places of answers. It is valid until something comes, is sent, or is settled.
type plan struct {
	vectors []sockio.Vector
	laidOut uint64       // the lane's, when the plan was made
	flight  int          // pieces in flight, likewise
	touched hostmem.Time // when the memory of all payloads had been touched a short while ago; 0 if not of all, or too much
}

// plan lays out the places of the answers to what is in flight: slots of statuses for status frames, the callers' memory for
// payloads. The first answer's status has slot 0, and so on; got bytes of the first answer have come already. touched says that
// the memory of all payloads was touched a moment ago.
func (l *lane) plan() (v []sockio.Vector, touched bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.planned
	if len(p.vectors) == 0 || p.laidOut != l.laidOut || p.flight != l.flight.len() {
		l.layOutAnswers(p)
	}
	return p.vectors, p.touched == hostmem.Now()
}

func (l *lane) layOutAnswers(made *plan) {
	*made = plan{vectors: made.vectors[:0], laidOut: l.laidOut, flight: l.flight.len(), touched: hostmem.Now()}
	skip := l.got
	most := receivePieces
	if l.alone {
		most = 1
	}
	var payloads, unpacked uint64
	for i := range min(l.flight.len(), most) {
		p := l.flight.at(i)
		if p.cold && i > 0 { // what comes before it does not wait for its pages
			break
		}
		slot := hostmem.AddressOf(l.statuses[i*wire.StatusSize:])
		skip = made.expect(slot, wire.StatusSize, skip)
		switch {
		case p.op == core.Read && p.byAddress:
			skip = made.expect(hostmem.AddressOf(l.peerMemory.frame[:]), wire.GrantSize, skip)
		case p.isScattered():
			if skip >= p.length {
				skip -= p.length
				continue
			}
			room := l.roomToUnpack()[unpacked:]
			part := min(p.length-skip, uint64(len(room)))
			skip = made.expect(hostmem.AddressOf(room), part, 0)
			unpacked += part
			if unpacked == uint64(len(l.unpacked)) { // no more has room
				return
			}
		case p.op == core.Read:
			skip = made.expect(p.local, p.length, skip)
			made.touched = min(made.touched, p.touched)
			payloads += p.length
		}
	}
	if payloads > sockio.MaxRawBytes {
		made.touched = 0
	}
	if len(made.vectors) == 0 { // nothing is expected: the peer may only close
		made.expect(hostmem.AddressOf(l.statuses[:]), 1, 0)
	}
}

// expect appends a range of memory without its first skip bytes, and returns what is left to skip.
func (p *plan) expect(base uintptr, length, skip uint64) uint64 {
	if skip >= length {
		return skip - length
	}
	p.vectors = sockio.Extend(p.vectors, base+uintptr(skip), length-skip)
	return 0
}

// consume accounts for n received bytes: it checks the status frames among them, and settles the pieces that have all.
func (l *lane) consume(n uint64) error {
	l.planned.vectors = l.planned.vectors[:0]
	now := hostmem.Now()
	l.cameAt = trace.Moment{}
	var unpacked uint64
	for i := 0; n > 0; i++ {
		l.mu.Lock()
		if l.flight.len() == 0 {
			l.mu.Unlock()
			return l.lost(fmt.Errorf("the peer sent %d bytes that no request had asked for", n))
		}
		p := *l.flight.at(0)
		l.mu.Unlock()

		need := p.answer()
		had := l.got
		step := min(n, need-had)
		l.got += step
		n -= step
		if had < wire.StatusSize && l.got >= wire.StatusSize {
			if err := l.checkStatus(l.statuses[i*wire.StatusSize:]); err != nil {
				return err
			}
		}
		if p.isScattered() && l.got > wire.StatusSize {
			begin := max(had, wire.StatusSize)
			payload := l.unpacked[unpacked:][:l.got-begin]
			if err := l.scatter(&p, begin-wire.StatusSize, payload); err != nil {
				return err
			}
			unpacked += l.got - begin
		}
		if l.got < need {
			l.keepStatus(i)
			return nil
		}
		if err := l.settleOldest(p, now); err != nil {
			return err
		}
	}
	return nil
}

// keepStatus moves a status frame of which a part has come to slot 0, where the next plan looks for the rest.
func (l *lane) keepStatus(slot int) {
	copy(l.statuses[:wire.StatusSize], l.statuses[slot*wire.StatusSize:])
}

// checkStatus looks at the status frame of the oldest piece.
func (l *lane) checkStatus(frame []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.flight.at(0)
	if p.op == core.Read {
		p.work.Trace().Answered(p.step, &l.cameAt)
	}
	return l.answered(judgeStatus(l.segment.Name, frame, p))
}

// settleOldest ends the oldest piece in flight, whose answer is complete. An answer may come before the sender has noted that all
// is sent. When it comes from a peer that has not waited for all, the memory of the piece is still in use, so it waits.
func (l *lane) settleOldest(p piece, now hostmem.Time) error {
	l.got = 0
	l.mu.Lock()
	for l.sent < p.end && l.broken == nil && l.stuck == nil {
		l.sending.Wait()
	}
	if l.sent < p.end || l.stuck != nil {
		defer l.mu.Unlock()
		return l.broken
	}
	p = l.flight.pop()
	l.flying.Add(-p.length)
	if p.cold {
		l.coldReads.Add(-1)
	}
	if p.isScattered() {
		l.scattered.Add(-1)
	}
	l.mu.Unlock()
	if p.unmoved() {
		p.work.Trace().Lost(p.step, p.length)
		l.comeBack(p)
		return nil
	}
	if p.byAddress { // the peer has read its memory
		now.Note(p.local, p.length, hostmem.Reading)
	}
	l.count(&p, p.way())
	p.work.Trace().Ended(p.step, &l.cameAt)
	p.settle(nil)
	return nil
}

// blameReceiver explains why receiving ended. Memory that could not be written belongs to the oldest READ, which fails alone.
func (l *lane) blameReceiver(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case errors.Is(err, syscall.EFAULT) && l.flight.len() > 0:
		p := l.flight.at(0)
		p.fatal = badLocal(p, err)
		return fmt.Errorf("%w: %w", errBadLocal, err)
	case l.broken != nil:
		return l.broken
	case errors.Is(err, io.EOF) && l.flight.len() == 0:
		return l.lost(errRetired)
	case errors.Is(err, io.EOF):
		err = errPeerClosed
	}
	return l.lost(err)
}
