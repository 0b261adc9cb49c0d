package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"kvferry/core"
	"kvferry/core/metrics"
	"kvferry/core/status"
	"kvferry/core/trace"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// A one-shot carrier moves pieces one after the other, each on a connection of its own: to a peer that sends no
// acknowledgements (version 1), and where lanes are turned off.
//
//  1. run takes a piece, connects, and sends the header and, for a WRITE, the payload.
//  2. Version 2: the status frame and, for a READ, the payload are received.
//  3. Version 1, READ: the payload is received.
//  4. Version 1, WRITE: the sending side is closed, and the connection is read to its end. The end of the stream alone does
//     not prove that the peer has taken the payload, because it also comes when the peer was killed. Together with an empty
//     send queue it does, because a peer that closes with unread bytes resets the connection.
type oneShot struct {
	*environment
	source source
	ctx    context.Context // ends connect
	cancel context.CancelFunc

	moved atomic.Uint64                                      // bytes sent and received
	send  func(*sockio.Socket, []sockio.Vector) (int, error) // tests replace it

	mu     sync.Mutex
	conn   *connection
	held   []piece // the one under way, if any
	broken error

	// Frames are here, and not on the stack, which may move while the kernel is given their addresses.
	header [wire.HeaderSize]byte
	answer [wire.StatusSize]byte
}

// errIdle ends a one-shot carrier that finds nothing to take.
var errIdle = errors.New("nothing is left to send")

func newOneShot(s source, e *environment) *oneShot {
	o := &oneShot{environment: e, source: s, send: (*sockio.Socket).Send}
	o.ctx, o.cancel = context.WithCancel(e.ctx)
	return o
}

func (o *oneShot) run() {
	defer o.cancel()
	for {
		p, ok := o.take()
		if !ok {
			o.source.ended(o, ending{reason: errIdle})
			return
		}
		conn, err := o.connect(p)
		if errors.Is(err, errNotCarried) {
			o.release()
			continue
		}
		if err != nil {
			o.source.ended(o, ending{reason: err, unreachable: true, held: o.held})
			return
		}
		p.step = conn.trace.Take(p.work.Trace(), p.op == core.Write, p.length, new(trace.Moment))
		if err = o.exchange(conn, p); err != nil {
			reason := o.reason(err)
			p.work.Trace().Lost(p.step, p.length)
			o.release()
			o.source.ended(o, ending{reason: reason, held: []piece{*p}, conn: conn, unanswered: writesOf(p)})
			return
		}
		_ = conn.Close()
		conn.release()
		o.count(p, metrics.TCP)
		p.work.Trace().Ended(p.step, new(trace.Moment))
		o.release()
		p.settle(nil)
	}
}

// take takes a piece and holds it, so that an abort finds it here.
func (o *oneShot) take() (*piece, bool) {
	for {
		taken := o.source.take(o, destination{}, nil, 1, 1)
		if len(taken) == 0 {
			return nil, false
		}
		o.mu.Lock()
		if err := taken[0].work.Aborted(); err != nil {
			o.mu.Unlock()
			taken[0].settle(err)
			continue
		}
		o.held = taken
		o.mu.Unlock()
		return &o.held[0], true
	}
}

func (o *oneShot) release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held, o.conn = nil, nil
}

// writesOf returns the piece under way if it is a WRITE.
func writesOf(p *piece) []piece {
	if p.op == core.Write {
		return []piece{*p}
	}
	return nil
}

func (o *oneShot) connect(p *piece) (*connection, error) {
	conn, err := o.source.connect(o.ctx, p)
	if errors.Is(err, errNotCarried) {
		return nil, err // the piece is not here any more: the carrier does not end with it
	}
	if err != nil {
		return nil, o.reason(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken != nil {
		conn.discard()
		return nil, o.broken
	}
	o.conn = conn
	return conn, nil
}

// exchange moves one piece over its connection.
func (o *oneShot) exchange(conn *connection, p *piece) error {
	acknowledged := conn.acknowledged
	wire.PutHeader(o.header[:], opcodeOf(p.op), p.remote, p.length, acknowledged)
	frame := []sockio.Vector{sockio.VectorOf(o.header[:])}
	if p.op == core.Write {
		frame = append(frame, sockio.Vector{Base: p.local, Length: p.length})
	}
	sendErr := o.move(conn, p, frame, func(v []sockio.Vector) (int, error) { return o.send(conn.Socket, v) }, progressLimit(o.config))
	if sendErr == nil {
		p.work.Trace().Sent(p.step, new(trace.Moment))
	}
	if acknowledged && p.fatal == nil {
		// What the peer said of the request before it stopped reading is still there.
		if err := o.receiveStatus(conn, p); err != nil {
			return errors.Join(sendErr, err)
		}
	}
	switch {
	case sendErr != nil:
		return sendErr
	case p.op == core.Read:
		return o.move(conn, p, []sockio.Vector{{Base: p.local, Length: p.length}}, conn.Receive, progressLimit(o.config))
	case !acknowledged:
		return o.confirm(conn, p)
	}
	return nil
}

// move sends or receives all of the vectors. limit is how long it waits while nothing moves.
func (o *oneShot) move(conn *connection, p *piece, v []sockio.Vector, step func([]sockio.Vector) (int, error),
	limit limit) error {
	for len(v) > 0 {
		if err := o.allow(conn, limit); err != nil {
			return err
		}
		n, err := step(v)
		if err != nil {
			return o.blame(p, err, limit)
		}
		o.moved.Add(uint64(n))
		v = sockio.Advance(v, n)
	}
	return nil
}

// allow sets how long the next step may wait, or returns why the carrier was made to quit.
func (o *oneShot) allow(conn *connection, limit limit) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken == nil {
		_ = conn.SetDeadline(time.Now().Add(limit.after))
	}
	return o.broken
}

func (o *oneShot) blame(p *piece, err error, limit limit) error {
	switch {
	case errors.Is(err, syscall.EFAULT):
		p.fatal = badLocal(p, err)
		return fmt.Errorf("%w: %w", errBadLocal, err)
	case errors.Is(err, os.ErrDeadlineExceeded) && o.reason(nil) == nil:
		p.fatal = stalledError(o.segment.Name, p, limit)
		return p.fatal
	case errors.Is(err, io.EOF):
		err = errPeerClosed
	}
	return status.Errorf(status.Socket, "segment %q (%v): %w", o.segment.Name, o.conn.Remote, err)
}

func (o *oneShot) receiveStatus(conn *connection, p *piece) error {
	limit := answerLimit(o.config)
	if err := o.move(conn, p, []sockio.Vector{sockio.VectorOf(o.answer[:])}, conn.Receive, limit); err != nil {
		return err
	}
	p.work.Trace().Answered(p.step, new(trace.Moment))
	return o.answered(judgeStatus(o.segment.Name, o.answer[:], p))
}

// confirm makes sure that a WRITE without an acknowledgement has arrived.
func (o *oneShot) confirm(conn *connection, p *piece) error {
	limit := answerLimit(o.config)
	if err := conn.CloseWrite(); err != nil {
		return o.blame(p, err, limit)
	}
	if err := o.allow(conn, limit); err != nil {
		return err
	}
	switch _, err := conn.Receive([]sockio.Vector{sockio.VectorOf(o.answer[:1])}); {
	case err == nil:
		return o.blame(p, errors.New("the peer answered a request that has no answer"), limit)
	case !errors.Is(err, io.EOF):
		return o.blame(p, err, limit)
	}
	outstanding, err := conn.Unacknowledged()
	if err != nil {
		return o.blame(p, err, limit)
	}
	const fin = 1 // the end of our stream may be on its way still
	if outstanding > fin {
		return status.Errorf(status.Socket, "segment %q: the peer closed the connection with %d bytes not received",
			o.segment.Name, outstanding)
	}
	return nil
}

// reason is why the carrier was made to quit, or else err.
func (o *oneShot) reason(err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return cmp.Or(o.broken, err)
}

func (o *oneShot) quit(reason error) {
	o.mu.Lock()
	o.broken = cmp.Or(o.broken, reason)
	conn := o.conn
	o.mu.Unlock()
	o.cancel()
	if conn != nil {
		_ = conn.SetDeadline(sockio.Past)
	}
}

func (o *oneShot) carriesAborted() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.held) > 0 && o.held[0].work.Aborted() != nil
}

func (o *oneShot) traffic() uint64 { return o.moved.Load() }
