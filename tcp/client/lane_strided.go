package client

import (
	"fmt"

	"kvferry/tcp/wire"
)

// The payloads of strided requests on a lane. The lane's memory is bounded, whatever is in flight:
//
//  1. pack copies the payloads of the WRITEs with short runs that were just taken, one behind the other. They are sent from there
//     before the next ones are taken. Those with long runs are not copied (sockio.MinDirectRun).
//  2. layOutAnswers has a system call receive the payloads of READs into a buffer, as much as it takes.
//  3. scatter copies them to their places as they come, also when only a part has come.
//
// Both copies may have to wait for a page of the caller's memory, as a system call may: see lane_stuck.go.

const (
	// packBytes bounds the payloads that are packed at once, but for the last one.
	packBytes = 256 << 10
	// unpackBytes is how much is received before it is unpacked.
	unpackBytes = 256 << 10
)

// pack copies the payloads of strided WRITEs, and returns the pieces to be sent, in the same slice. One whose memory cannot be
// read fails. A goroutine that may not wait leaves them to the writer.
func (l *lane) pack(pieces []piece, mayWait bool) []piece {
	var bytes uint64
	for i := range pieces {
		if pieces[i].isPacked() {
			bytes += pieces[i].length
		}
	}
	if bytes == 0 {
		return pieces
	}
	if !mayWait {
		return l.leavePacking(pieces)
	}
	l.mu.Lock()
	if l.stuck != nil {
		l.mu.Unlock()
		return pieces
	}
	l.inHand, l.copying = nil, pieces
	l.mu.Unlock()
	if uint64(cap(l.packed)) < bytes {
		l.packed = make([]byte, bytes)
	}
	var failed []error
	l.overtakable(true, func() { failed = l.packAll(pieces) })
	return l.endPacking(pieces, failed)
}

// endPacking gives the pieces with an error back, which fails them or splits them, and returns the others, in the same slice.
// Where the lane was given up meanwhile, all of them are settled.
func (l *lane) endPacking(pieces []piece, failed []error) []piece {
	l.mu.Lock()
	l.copying = nil
	if l.stuck != nil {
		l.mu.Unlock()
		return nil
	}
	rest, bad := pieces, []piece(nil)
	if failed != nil {
		rest = pieces[:0]
		for i, err := range failed {
			if p := pieces[i]; err == nil {
				rest = append(rest, p)
			} else {
				p.fatal = badLocal(&p, err)
				bad = append(bad, p)
			}
		}
		clear(pieces[len(rest):]) // for the collector
	}
	l.inHand = rest
	l.mu.Unlock()
	l.source.putBack(bad)
	return rest
}

// leavePacking leaves strided WRITEs to the writer, and returns the other pieces, in the same slice.
func (l *lane) leavePacking(pieces []piece) []piece {
	l.mu.Lock()
	if l.stuck != nil { // giveUpStuck has settled them
		l.mu.Unlock()
		return nil
	}
	rest := pieces[:0]
	var later []piece
	for i := range pieces {
		if pieces[i].isPacked() {
			later = append(later, pieces[i])
		} else {
			rest = append(rest, pieces[i])
		}
	}
	clear(pieces[len(rest):]) // for the collector
	l.inHand = rest
	l.mu.Unlock()
	l.leaveToWriter(later)
	return rest
}

// packAll copies the payloads. Where memory cannot be read there is an error for each piece, nil for most.
func (l *lane) packAll(pieces []piece) (failed []error) {
	l.packed = l.packed[:cap(l.packed)]
	at := 0
	for i := range pieces {
		p := &pieces[i]
		if !p.isPacked() {
			continue
		}
		p.strided.packed = at
		if err := l.packer.Gather(l.packed[at:][:p.length], &p.strided.memory, 0); err != nil {
			if failed == nil {
				failed = make([]error, len(pieces))
			}
			failed[i] = err
		}
		at += int(p.length)
	}
	return failed
}

// roomForHeaders makes room for the headers of pieces. What was laid out before is sent.
func (l *lane) roomForHeaders(pieces []piece) {
	need := 0
	for i := range pieces {
		need += int(pieces[i].header())
	}
	if l.headers = l.headers[:0]; need > cap(l.headers) {
		l.headers = make([]byte, 0, sendPieces*(wire.HeaderSize+wire.MaxStridedBody))
	}
}

// roomToUnpack is where the payloads of strided READs are received.
func (l *lane) roomToUnpack() []byte {
	if l.unpacked == nil {
		l.unpacked = make([]byte, unpackBytes)
	}
	return l.unpacked
}

// scatter copies payload of the oldest piece, a strided READ, to its places: from position at of the piece's payload on.
func (l *lane) scatter(p *piece, at uint64, payload []byte) (err error) {
	l.mu.Lock()
	over := l.stuck != nil
	l.mu.Unlock()
	if over {
		return errLaneEnded
	}
	l.overtakable(true, func() { err = l.unpacker.Scatter(&p.strided.memory, at, payload) })
	if err == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flight.len() > 0 {
		oldest := l.flight.at(0)
		oldest.fatal = badLocal(oldest, err)
	}
	return fmt.Errorf("%w: %w", errBadLocal, err)
}
