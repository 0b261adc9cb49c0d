package client

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/status"
	"kvferry/core/trace"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// The sending half of a lane:
//
//  1. serveQueue, on the writer's goroutine, and writeIfIdle, on a submitter's, take turns at write.
//  2. fill takes pieces from the peer's queue, and layOut makes vectors of their headers and payloads. The payloads of strided
//     WRITEs with short runs are packed before (lane_strided.go).
//  3. send sends them, as many as the socket takes, in one system call.
//  4. blameSender finds the piece whose memory cannot be read. endSending leaves the rest to the receiver.

// serveQueue is the writer. It sends whenever it is woken.
func (l *lane) serveQueue() {
	for {
		l.writing.Lock()
		err := status.Guard(func() error { return l.write(true) })
		l.writing.Unlock()
		if err != nil {
			l.endSending(err)
			return
		}
		select {
		case <-l.wakeups:
		case <-l.ctx.Done():
			return
		}
	}
}

// writeIfIdle: see pipelined. It sends when nothing is in flight and nobody else sends. What the socket does not take at once is
// left to the writer.
func (l *lane) writeIfIdle() bool {
	if !l.idle() || !l.writing.TryLock() {
		return false
	}
	err := l.write(false)
	l.writing.Unlock()
	if err != nil {
		l.wake() // the writer comes to the same error
	}
	return true
}

// write sends until there is nothing to take or the window is full. When it may not wait, it sends once, and leaves the rest to
// the writer. It leaves everything to the writer where memory may have to be brought in first: a submitter does not wait for
// pages. The lock for writing is held.
func (l *lane) write(mayWait bool) error {
	for {
		if len(l.unsent) == 0 && !l.fill(mayWait) {
			return nil
		}
		if len(l.unsent) == 0 { // all that was taken is done already
			if mayWait {
				continue
			}
			if l.source.hasQueued() {
				l.wake()
			}
			return nil
		}
		if !mayWait && !l.conn.SendsAtOnce(l.unsent) {
			l.wake()
			return nil
		}
		n, again, err := l.send(mayWait)
		if errors.Is(err, syscall.EFAULT) && !l.careful {
			l.careful = true // the kernel does not say which vector it was: the next time it is the first
			continue
		}
		if err != nil {
			return l.blameSender(err)
		}
		l.noteSent(n)
		if !mayWait && (again || len(l.unsent) > 0 || l.source.hasQueued()) {
			l.wake()
			return nil
		}
	}
}

func (l *lane) send(mayWait bool) (n int, again bool, err error) {
	v := l.unsent
	if l.careful {
		v = v[:1]
	}
	if mayWait {
		slow := !l.conn.SendsAtOnce(v)
		l.overtakable(slow, func() {
			if slow {
				bringIn(v)
			}
			n, err = l.conn.Send(v)
		})
		return n, false, err
	}
	l.spinIfExpected()
	return l.conn.TrySend(v)
}

func (l *lane) noteSent(n int) {
	l.moved.Add(uint64(n))
	l.unsent = sockio.Advance(l.unsent, n)
	l.mu.Lock()
	before := l.sent
	l.sent += uint64(n)
	if l.conn.trace != nil {
		l.recordSent(before)
	}
	l.mu.Unlock()
	l.sending.Signal()
}

// recordSent records the requests whose last bytes were sent after a position in the stream. The lock is held.
func (l *lane) recordSent(after uint64) {
	var now trace.Moment
	for i := l.flight.len() - 1; i >= 0 && l.flight.at(i).end > after; i-- {
		if p := l.flight.at(i); p.end <= l.sent {
			p.work.Trace().Sent(p.step, &now)
		}
	}
}

// fill takes pieces from the queue, and lays their frames out in unsent. They are in flight from then on. It reports whether there
// was anything to take. A goroutine that may not wait leaves to the writer what it might have to wait for.
func (l *lane) fill(mayWait bool) bool {
	l.mu.Lock()
	pieces, flying, broken := windowPieces-l.flight.len(), l.load(), l.broken
	l.mu.Unlock()
	bytes := windowBytes - int64(flying)
	if broken != nil || pieces <= 0 || bytes <= 0 || l.renewing.Load() || l.waitsForPage() { // no piece is to wait behind a page that may not come
		return false
	}
	l.taken = l.source.take(l, l.conn.destination(), l.taken[:0], min(pieces, l.most), uint64(min(bytes, sendBytes)))
	if l.taken = l.apart(l.taken, mayWait); len(l.taken) == 0 {
		return false
	}
	l.taken = l.pack(l.fetchGranted(l.taken, mayWait), mayWait)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inHand = nil
	if l.stuck != nil {
		return false
	}
	l.roomForHeaders(l.taken)
	l.vectors = l.vectors[:0]
	now := hostmem.Now()
	l.tookAt = trace.Moment{}
	for i := range l.taken {
		p := &l.taken[i]
		if err := p.work.Aborted(); err != nil { // since it was taken: abort has not seen it here
			p.settle(err)
			continue
		}
		l.layOut(p, now)
		if p.op == core.Read {
			l.checkMemory(p, now)
		}
		l.flight.push(*p)
		l.flying.Add(p.length)
		if p.isScattered() {
			l.scattered.Add(1)
		}
	}
	clear(l.taken) // for the collector
	l.unsent = l.vectors
	if len(l.unsent) > 0 && !l.watching {
		l.watching, l.lastMoved, l.movedAt = true, l.moved.Load(), time.Now()
		l.watchdog.Reset(l.watchInterval())
	}
	return true
}

// checkMemory finds out whether the memory of a READ has to be brought in. The lock is held.
func (l *lane) checkMemory(p *piece, now hostmem.Time) {
	p.touched, p.cold = 0, false
	switch {
	case p.isScattered():
		p.touched = now // the system call touches memory of the lane only
		if p.cold = !p.strided.memory.There(now, hostmem.Writing); p.cold {
			l.coldReads.Add(1)
		}
	case now.Seen(p.local, p.length, hostmem.Writing):
		p.touched = now
	case !hostmem.Resident(p.local, p.length):
		p.cold = true
		l.coldReads.Add(1)
	}
}

// layOut appends a piece's frame to the vectors. Headers that follow each other share one.
func (l *lane) layOut(p *piece, now hostmem.Time) {
	at, size := len(l.headers), p.header()
	l.headers = l.headers[:at+int(size)] // never beyond its capacity: its address is in the vectors
	l.choose(p, now)
	if p.strided != nil {
		p.strided.put(l.headers[at:], p)
	} else if p.byAddress {
		wire.PutHeaderByAddress(l.headers[at:], opcodeOf(p.op), p.remote, p.length, uint64(p.local))
	} else {
		wire.PutHeader(l.headers[at:], opcodeOf(p.op), p.remote, p.length, true)
	}
	l.vectors = sockio.Extend(l.vectors, hostmem.AddressOf(l.headers[at:]), size)
	l.laidOut += size
	if p.op == core.Write && !p.byAddress {
		l.layOutPayload(p)
		l.laidOut += p.length
	}
	p.end = l.laidOut
	if l.conn.trace != nil {
		p.step = l.conn.trace.Take(p.work.Trace(), p.op == core.Write, p.length, &l.tookAt)
	}
}

// layOutPayload appends the payload of a WRITE to the vectors.
func (l *lane) layOutPayload(p *piece) {
	switch {
	case p.isPacked():
		l.vectors = append(l.vectors, sockio.VectorOf(l.packed[p.strided.packed:][:p.length]))
	case p.isSpread():
		memory := &p.strided.memory
		for run := range memory.Runs() {
			l.vectors = append(l.vectors, sockio.Vector{Base: run, Length: memory.Run})
		}
	default:
		l.vectors = append(l.vectors, sockio.Vector{Base: p.local, Length: p.length})
	}
}

// blameSender explains why sending ended. Memory that could not be read belongs to the first piece not sent, which fails alone.
func (l *lane) blameSender(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !errors.Is(err, syscall.EFAULT) {
		return l.lost(err)
	}
	for i := range l.flight.len() {
		if p := l.flight.at(i); p.end > l.sent {
			p.fatal = badLocal(p, err)
			break
		}
	}
	return fmt.Errorf("%w: %w", errBadLocal, err)
}

// endSending is called when nothing more can be sent. The lane goes on receiving for a while, because answers that the peer sent
// before it closed are still there to be read.
func (l *lane) endSending(err error) {
	l.mu.Lock()
	if l.broken == nil {
		l.broken = err
	}
	wait := isLoss(l.broken) && !l.over
	l.mu.Unlock()
	l.sending.Signal()
	deadline := sockio.Past
	if wait {
		deadline = time.Now().Add(lastAnswers)
	}
	_ = l.conn.SetReadDeadline(deadline)
}
