package client

import (
	"errors"
	"fmt"
	"slices"

	"kvferry/core/metadata"
	"kvferry/core/status"
)

// What becomes of a range that the peer refused, or that its descriptor does not show:
//
//  1. revalidate sets the piece aside as unverified.
//  2. resolve fetches the descriptor again, once for all unverified pieces.
//  3. judge has each task's share sent once more when the new descriptor shows it, and fails it otherwise.
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

// mayCarry: see source.
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
	case h.refusals >= mostRefusals:
		h.settle(p.refused(&h, errors.New("the peer refused it twice")))
	case !shows(d, &h):
		h.settle(p.refused(&h, errors.New("its descriptor shows no buffer that holds it")))
	default:
		p.requeue(h)
	}
}

// shows reports whether a descriptor has a buffer that holds a piece's range, or does not list all of its buffers.
func shows(d *metadata.Descriptor, h *piece) bool {
	_, ok := d.Contains(h.remote, h.length)
	return ok || d.Truncated
}

func (p *peer) refused(h *piece, why error) error {
	return status.Errorf(status.AddressNotRegistered, "segment %q: range %#x+%d rejected: %w",
		p.segment.Name, h.remote, h.length, why)
}
