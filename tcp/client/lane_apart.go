package client

import (
	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/sockio"
)

// A page of one transfer that never comes must not hold up other transfers to the same peer:
//
//  1. apart lets no other work share a system call with a piece whose memory may have to be brought in.
//  2. bringIn has a page waited for before the bytes are sent. The kernel locks a TCP socket while sendmsg waits, and then nobody
//     receives the answers to what is in flight.
//  3. layOutAnswers has such a READ received by itself (lane_receive.go).

// apart returns those of the pieces just taken that may share a system call, in the same slice, and queues the others again. The
// first piece is among them, where the goroutine may wait.
func (l *lane) apart(pieces []piece, mayWait bool) []piece {
	l.most = min(2*l.most, sendPieces)
	if isOneWork(pieces) {
		return pieces
	}
	now := hostmem.Now()
	var alone *core.Work
	var later []piece
	rest := pieces[:0]
	for i := range pieces {
		p := pieces[i]
		there := p.work != alone && p.isThere(now)
		if i == 0 && !there && mayWait {
			alone = p.work
		}
		if p.work == alone || there && alone == nil {
			rest = append(rest, p)
		} else {
			later = append(later, p)
		}
	}
	clear(pieces[len(rest):]) // for the collector
	if len(later) > 0 {
		l.most = 1
		l.leaveToWriter(later)
	}
	return rest
}

func isOneWork(pieces []piece) bool {
	for i := range pieces {
		if pieces[i].work != pieces[0].work {
			return false
		}
	}
	return true
}

// isThere reports whether the local memory of a piece is most likely in memory.
func (p *piece) isThere(now hostmem.Time) bool {
	access := hostmem.Reading
	if p.op == core.Read {
		access = hostmem.Writing
	}
	if p.isSpread() {
		return p.strided.memory.There(now, access)
	}
	return now.There(p.local, p.length, access)
}

// bringIn touches each page of what is about to be sent. It waits for those that have to be brought in.
func bringIn(v []sockio.Vector) {
	for _, one := range v {
		hostmem.Readable(one.Base, one.Length) // memory that cannot be read is found out when it is sent
	}
}
