package client

import (
	"errors"
	"fmt"
	"slices"

	"kvferry/core"
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
func (p *peer) revalidate(h piece) {
	h.round = p.round
	p.unverified = append(p.unverified, h)
	if !p.resolving {
		p.resolving = true
		p.client.running.Go(p.resolve)
	}
}

// mayGoTo reports whether a piece may be sent to an engine. A piece that may not fails, or is blocked. The lock is held.
func (p *peer) mayGoTo(to destination, h *piece) bool {
	if !h.work.Bind(to.owner, to.there) {
		h.settle(p.replacedError(h, to.owner))
		return false
	}
	return p.mayGo(to.target, h)
}

// mayCarry is mayGoTo for a connection that was made for the piece alone.
func (p *peer) mayCarry(conn *connection, h *piece) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mayGoTo(conn.destination(), h)
}

// replacedError is why a piece fails that was meant for another incarnation of the peer.
func (p *peer) replacedError(h *piece, owner *metadata.Descriptor) error {
	return status.Errorf(status.Socket, "segment %q: %w: it was submitted to %s, and %s answers in its place",
		p.segment.Name, errRestarted, engineOf(h.work.BoundTo()), engineOf(owner.Identity))
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
		p.unverified = slices.DeleteFunc(p.unverified, func(h piece) bool {
			if h.round >= round {
				return false // set aside since: the descriptor may be older
			}
			h.split(func(part piece) { p.judge(part, d, err) })
			return true
		})
		p.mu.Unlock()
		p.dispatch(false)
	}
}

// judge decides what becomes of an unverified piece of one task. The lock is held.
func (p *peer) judge(h piece, d *metadata.Descriptor, err error) {
	const mostRefusals = 2 // once with the old descriptor, once with the new one
	switch cause := h.work.Aborted(); {
	case cause != nil:
		h.settle(cause)
	case p.closed != nil:
		h.settle(p.closed)
	case err != nil:
		h.settle(p.refused(&h, fmt.Errorf("and its descriptor cannot be fetched again: %w", err)))
	case h.refusals >= mostRefusals && h.forbidden:
		h.settle(p.refused(&h, forbidden(&h)))
	case h.refusals >= mostRefusals:
		h.settle(p.refused(&h, errors.New("the peer refused it twice")))
	default:
		if why := refusalBy(d, &h); why != nil {
			h.settle(p.refused(&h, why))
			return
		}
		p.requeue(h)
	}
}

// errNotShown is why a range fails that no buffer of the descriptor holds.
var errNotShown = errors.New("its descriptor shows no buffer that holds it")

// refusalBy is why the owner of a descriptor refuses a piece, or nil. A descriptor that does not list all buffers says nothing of a
// range that it does not show.
func refusalBy(d *metadata.Descriptor, h *piece) error {
	buffer, ok := d.Contains(h.remote, h.length)
	switch {
	case !ok && !d.Truncated:
		return errNotShown
	case h.op == core.Read && buffer.Access == metadata.WriteOnly, h.op == core.Write && buffer.Access == metadata.ReadOnly:
		return forbidden(h)
	}
	return nil
}

// isRefused reports whether a piece is not to be sent before its owner's descriptor has been fetched again. all says that the
// descriptor is asked about each range. Otherwise the peer is asked, except for what its descriptor says that it does not allow.
func isRefused(d *metadata.Descriptor, h *piece, all bool) bool {
	if !all && !d.IsRestricted() {
		return false
	}
	why := refusalBy(d, h)
	return why != nil && (all || errors.Is(why, core.ErrForbidden))
}

func forbidden(h *piece) error { return fmt.Errorf("%w %s it", core.ErrForbidden, h.op.Verb()) }

func (p *peer) refused(h *piece, why error) error {
	return status.Errorf(status.AddressNotRegistered, "segment %q: range %#x+%d rejected: %w",
		p.segment.Name, h.remote, h.length, why)
}
