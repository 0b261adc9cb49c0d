package client

import (
	"errors"
	"fmt"
	"slices"

	"kvferry/core"
	"kvferry/core/layout"
	"kvferry/core/metadata"
	"kvferry/core/status"
)

// What becomes of a range that the peer refused, or that its descriptor does not show, or shows as closed to such a request:
//
//  1. revalidate sets the piece aside as unverified.
//  2. resolve fetches the descriptor again, once for all unverified pieces.
//  3. judge has each task's share sent once more when the new descriptor allows it, and fails it otherwise.
//
// mayGoTo ensures that a task goes to the incarnation of the engine that it was submitted to.

// revalidate has a piece wait for the descriptor to be fetched again. The lock is held.
func (p *peer) revalidate(piece piece) {
	piece.round = p.round
	p.unverified = append(p.unverified, piece)
	if !p.resolving {
		p.resolving = true
		p.client.running.Go(p.resolve)
	}
}

// mayGoTo reports whether a piece may be sent to an engine. A piece that may not fails, or is blocked. The lock is held.
func (p *peer) mayGoTo(to destination, piece *piece) bool {
	if !piece.work.Bind(to.owner, to.there) {
		piece.settle(p.replacedError(piece, to.owner))
		return false
	}
	return p.mayGo(to.target, piece)
}

// mayCarry is mayGoTo for a connection that was made for the piece alone.
func (p *peer) mayCarry(conn *connection, piece *piece) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mayGoTo(conn.destination(), piece)
}

// replacedError is why a piece fails that was meant for another incarnation of the peer.
func (p *peer) replacedError(piece *piece, owner *metadata.Descriptor) error {
	return status.Errorf(status.Socket, "segment %q: %w: it was submitted to %s, and %s answers in its place",
		p.segment.Name, errRestarted, engineOf(piece.work.BoundTo()), engineOf(owner.Identity))
}

// notStrided is why a piece fails that the engine of a descriptor does not take.
func (p *peer) notStrided(piece *piece, d *metadata.Descriptor) error {
	if piece.work.Key != (layout.Key{}) {
		return status.Errorf(status.NotSupportedTransport, "segment %q: %w", p.segment.Name, errNoOffers)
	}
	return p.replacedError(piece, d)
}

func engineOf(identity string) string {
	if identity == "" {
		return "an engine without an identity"
	}
	return "engine " + identity
}

// errRestarted is why a task fails whose target is gone.
var errRestarted = errors.New("the peer has restarted")

// resolve fetches the descriptor for the unverified pieces. Those whose range it shows are sent once more, each task by itself.
// The others fail.
func (p *peer) resolve() {
	for {
		p.mu.Lock()
		if len(p.unverified) == 0 {
			p.resolving = false
			p.mu.Unlock()
			return
		}
		p.round++
		round := p.round
		p.mu.Unlock()

		d, err := p.refresh(p.ctx, p.segment.Descriptor())

		p.mu.Lock()
		p.checked = true
		p.unverified = slices.DeleteFunc(p.unverified, func(waiting piece) bool {
			if waiting.round >= round {
				return false // set aside since: the descriptor may be older
			}
			waiting.split(func(part piece) { p.judge(part, d, err) })
			return true
		})
		p.mu.Unlock()
		p.dispatch(false)
	}
}

// judge decides what becomes of an unverified piece of one task. The lock is held.
func (p *peer) judge(piece piece, d *metadata.Descriptor, err error) {
	const mostRefusals = 2 // once with the old descriptor, once with the new one
	switch cause := piece.work.Aborted(); {
	case cause != nil:
		piece.settle(cause)
	case p.closed != nil:
		piece.settle(p.closed)
	case err != nil:
		piece.settle(p.refused(&piece, fmt.Errorf("and its descriptor cannot be fetched again: %w", err)))
	case piece.refusals >= mostRefusals && piece.forbidden:
		piece.settle(p.refused(&piece, forbidden(&piece)))
	case piece.refusals >= mostRefusals:
		piece.settle(p.refused(&piece, errors.New("the peer refused it twice")))
	default:
		if why := refusalBy(d, &piece); why != nil {
			piece.settle(p.refused(&piece, why))
			return
		}
		p.requeue(piece)
	}
}

// errNotShown is why a range fails that no buffer of the descriptor holds.
var errNotShown = errors.New("its descriptor shows no buffer that holds it")

// refusalBy is why the owner of a descriptor refuses a piece, or nil. A descriptor that does not list all buffers says nothing of a
// range that it does not show.
func refusalBy(d *metadata.Descriptor, piece *piece) error {
	if piece.strided != nil { // it may lie in several buffers
		return nil
	}
	buffer, ok := d.Contains(piece.remote, piece.length)
	switch {
	case !ok && !d.Truncated:
		return errNotShown
	case piece.op == core.Read && buffer.Access == metadata.WriteOnly,
		piece.op == core.Write && buffer.Access == metadata.ReadOnly:
		return forbidden(piece)
	}
	return nil
}

// isRefused reports whether a piece is not to be sent before its owner's descriptor has been fetched again. all says that the
// descriptor is asked about each range. Otherwise the peer is asked, except for what its descriptor says that it does not allow.
func isRefused(d *metadata.Descriptor, piece *piece, all bool) bool {
	if !all && !d.IsRestricted() {
		return false
	}
	why := refusalBy(d, piece)
	return why != nil && (all || errors.Is(why, core.ErrForbidden))
}

func forbidden(piece *piece) error { return fmt.Errorf("%w %s it", core.ErrForbidden, piece.op.Verb()) }

func (p *peer) refused(piece *piece, why error) error {
	addr, length := piece.remoteRange()
	return status.Errorf(status.AddressNotRegistered, "segment %q: range %#x+%d rejected: %w", p.segment.Name, addr, length, why)
}
