package client

import (
	"context"
	"errors"
	"io"
	"time"

	"kvferry/core"
	"kvferry/tcp/sockio"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// How the end of a former connection at its target is found out; see fence. The table in ended.go has the reasons.
const (
	// maxLingering bounds the connections that an engine reads to their ends.
	maxLingering = 64
	// The pause between two hellos that ask for the end of one connection: doubled each time, within these limits.
	minFencePause = 5 * time.Millisecond
	maxFencePause = 5 * time.Second
)

// ask asks the engine at the other end of a former connection for its end, until the connection is known to be over: the
// engine says so, or another incarnation answers.
func (f *fence) ask(old *connection, end *connectionEnd) {
	for pause := minFencePause; ; pause = min(2*pause, maxFencePause) {
		conn, err := old.peer.dialData(f.ctx, old.owner, old.number)
		if err == nil {
			conn.discard()
			break
		}
		if old.peer.replaced(f.ctx, old.owner) {
			break
		}
		f.log.Debug("a former connection is not known to be over", zap.Uint64("connection", old.number), zap.Error(err))
		select {
		case <-time.After(pause):
		case <-f.ctx.Done():
			return
		}
	}
	f.free(old, end)
}

// learnEnd finds out when the target has ended a connection without a hello. It owns the connection from then on.
func (f *fence) learnEnd(conn *connection, end *connectionEnd, reason error) {
	if !isReset(reason) {
		if f.lingering.Add(1) <= maxLingering {
			f.running.Go(func() { f.lingerUntilPeerDone(conn, end) })
			return
		}
		f.lingering.Add(-1)
	}
	f.quarantines.giveUp(end)
	conn.discard()
}

// isEnd reports whether the target of a connection has ended it: it has said so in good order, and serves nothing more that
// came over it.
func isEnd(reason error) bool {
	return errors.Is(reason, errRefused) || errors.Is(reason, errPeerClosed) || errors.Is(reason, errRetired)
}

// isReset reports whether a connection is lost, so that the end of its session at the target cannot be seen.
func isReset(reason error) bool {
	return isLoss(reason) && !errors.Is(reason, errStalled) && !errors.Is(reason, core.ErrClosed)
}

// lingerUntilPeerDone reads a connection to its end.
func (f *fence) lingerUntilPeerDone(conn *connection, end *connectionEnd) {
	defer f.lingering.Add(-1)
	_ = conn.SetDeadline(time.Time{}) // before the next line: the transport may be closed already
	stop := context.AfterFunc(f.ctx, func() { _ = conn.SetDeadline(sockio.Past) })
	defer stop()
	err := conn.CloseWrite()
	if errors.Is(err, unix.ENOTCONN) { // the peer has ended it already: reading tells how
		err = nil
	}
	for scratch := make([]byte, 32<<10); err == nil; {
		err = conn.Discard(scratch, len(scratch))
	}
	conn.discard()
	if errors.Is(err, io.EOF) {
		f.free(conn, end)
	} else {
		f.quarantines.giveUp(end)
		f.recheck(conn)
	}
}

// free releases the ranges of a connection that is over.
func (f *fence) free(conn *connection, end *connectionEnd) {
	f.quarantines.release(end)
	f.recheck(conn)
}

// recheck has the WRITEs queued again that were blocked: those of the connection's peer, which may have been forgotten, and those
// of all others, because a target may be known by several names.
func (f *fence) recheck(conn *connection) {
	conn.peer.recheck()
	f.freed()
}
