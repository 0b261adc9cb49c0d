package client

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/metadata"

	"go.uber.org/zap"
)

// fence owns the question who may still touch the memory of a transfer that was given up. One fence is for all peers of a
// client. Memory of this process:
//
//  1. endConnection revokes the permit by which a target on this host copies, before a piece is settled (revoke).
//  2. Where a copy or a system call does not end, the memory is held: taking it back fails, and says why (hold, holdStuck).
//
// Memory of the target. Bytes of a WRITE that was in flight on a connection that ended may still be applied by the target. They
// must not land after a later WRITE to the same place was acknowledged:
//
//  3. The ranges of the WRITEs that were in flight, of which something was sent and nothing was acknowledged, go into the
//     quarantine of the target (quarantine.go). A WRITE that overlaps one waits for it (blocked.go).
//  4. A target with an identity is asked by the hello of a new connection whether the session of the old one has ended (ask).
//     The ranges are free when the answer comes, or when another incarnation of the engine answers.
//  5. Mooncake's targets cannot be asked. Where the old connection is whole, its sending side is closed, and it is read to its
//     end, which comes when the target has applied or dropped everything (lingerUntilPeerDone). Where the connection was reset,
//     nobody can know: WRITEs to the ranges fail from then on, except those of the work that was in flight. That lasts until
//     the target is another process, on another port.
type fence struct {
	ctx     context.Context // ends with the client
	running *sync.WaitGroup
	log     *zap.Logger
	memory  Memory
	freed   func() // ranges were freed, or are known not to be

	quarantines quarantines
	lingering   atomic.Int64
}

// former is the peer of a connection, as the fence sees it once the connection was given up.
type former interface {
	// name is the segment's, for a log line.
	name() string
	// dialData connects by a descriptor. ends is the number of a former connection that is to be over first.
	dialData(ctx context.Context, d *metadata.Descriptor, ends uint64) (*connection, error)
	// replaced reports whether the engine of a descriptor is gone, because another incarnation answers in its place.
	replaced(ctx context.Context, d *metadata.Descriptor) bool
	// recheck queues the WRITEs again that were blocked.
	recheck()
}

// endConnection ends a connection on this side, before anything that was in flight on it is settled or sent again. unanswered are
// the WRITEs of which something was sent. reason is why the connection ends.
func (f *fence) endConnection(conn *connection, unanswered []piece, reason error) {
	revoked := f.revoke(conn, unanswered)
	if len(unanswered) == 0 || conn.number == 0 && isEnd(reason) {
		conn.discard()
		return
	}
	end := f.quarantine(conn, unanswered)
	if conn.number == 0 {
		f.learnEnd(conn, end, reason)
		return
	}
	conn.Reset()
	if revoked {
		conn.release()
	}
	f.running.Go(func() { f.ask(conn, end) })
}

// revokeTimeout is how long endConnection waits for a copy that the target makes of local memory. A copy takes a millisecond at
// most. A target that is stopped in the middle of it, or waits for a page of this process, may take for ever.
const revokeTimeout = 2 * time.Second

// revoke takes back the permit to copy from this process, and reports whether nothing is copied any more. Otherwise the memory
// of the pieces is held until the copy, or the process that makes it, has ended. What the connection knows of that process is
// kept until then.
func (f *fence) revoke(conn *connection, unanswered []piece) bool {
	if len(unanswered) == 0 && conn.permit != nil {
		conn.permit.Revoke(0, func() bool { return true }) // nothing of this process is being copied
		return true
	}
	if conn.permit == nil || conn.permit.Revoke(revokeTimeout, func() bool { return !conn.process.Lives() }) {
		return true
	}
	why := fmt.Sprintf("a copy that %v is making, which was given up and does not end: is the process stopped?", conn.process)
	release := f.hold(unanswered, why)
	f.log.Warn("the memory of transfers that have failed may still be read", zap.String("segment", conn.peer.name()), zap.String("by", why))
	f.running.Go(func() {
		if f.awaitRevocation(conn) {
			release()
		}
		conn.release()
	})
	return false
}

// awaitRevocation waits for a permit for as long as it takes, or until the client is closed. Then it reports whether nothing is copied
// any more. Otherwise the memory stays held, and closing the engine fails and names it.
func (f *fence) awaitRevocation(conn *connection) bool {
	gone := func() bool { return !conn.process.Lives() }
	for !conn.permit.Revoke(revokeTimeout, func() bool { return f.ctx.Err() != nil || gone() }) {
	}
	return conn.permit.Revoke(0, gone)
}

// hold keeps the local memory of pieces from being taken back, until release is called.
func (f *fence) hold(pieces []piece, why string) (release func()) {
	var all []func()
	for i := range pieces {
		all = append(all, f.memory.Hold(pieces[i].localRange(), why))
	}
	return func() {
		for _, release := range all {
			release()
		}
	}
}
