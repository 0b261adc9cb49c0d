package core

import (
	"context"
	"sync"

	"kvferry/core/metadata"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// inbox keeps received notifications until they are fetched.
type inbox struct {
	mu       sync.Mutex
	messages []metadata.Notification
	limit    int
}

// put keeps a message. It returns false when the inbox is full: the sender then gets an error.
func (b *inbox) put(n metadata.Notification) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.messages) >= b.limit {
		return false
	}
	b.messages = append(b.messages, n)
	return true
}

func (b *inbox) drain() []metadata.Notification {
	b.mu.Lock()
	defer b.mu.Unlock()
	messages := b.messages
	b.messages = nil
	return messages
}

// Notifications returns the messages received since the last call, in order.
func (e *Engine) Notifications() []metadata.Notification { return e.inbox.drain() }

// Notify sends a message to a segment's owner, and returns when the owner has accepted it.
func (e *Engine) Notify(id SegmentID, n metadata.Notification) error { return e.notify(e.ctx, id, n) }

func (e *Engine) notify(ctx context.Context, id SegmentID, n metadata.Notification) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	if id == LocalSegment {
		n = metadata.Notification{Name: characters(n.Name), Text: characters(n.Text)}
		if !e.inbox.put(n) {
			return status.Errorf(status.Socket, "notification %q rejected: %d wait to be fetched", n.Name, e.inbox.limit)
		}
		return nil
	}
	s := e.segments.numbered(id)
	if s == nil {
		return status.Errorf(status.Metadata, "segment %d is not open", id)
	}
	peer, err := e.store.HandshakeAddress(ctx, s.Name)
	if err != nil {
		return err
	}
	err = e.client.SendNotify(ctx, peer, n)
	if code := status.Of(err, status.Socket); code == status.DNS || code == status.RejectHandshake {
		return status.Errorf(status.Socket, "%w", err) // callers know one code for a message that was not accepted
	}
	return err
}

// characters is text as a peer would receive it: each byte that is not UTF-8 becomes U+FFFD.
func characters(text string) string { return string([]rune(text)) }

// Probe asks the owner of a segment name whether it is alive.
func (e *Engine) Probe(name string) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	if e.segmentName(name) == e.name {
		return nil
	}
	peer, err := e.store.HandshakeAddress(e.ctx, name)
	if err != nil {
		return err
	}
	return e.client.Probe(e.ctx, peer)
}

// checkNotification says whether a batch's notification can be sent.
func (e *Engine) checkNotification(n *pendingNotification) error {
	if n.to == LocalSegment {
		return nil // it goes to the engine's own inbox
	}
	if err := e.client.CheckNotify(n.msg); err != nil {
		return status.Errorf(status.InvalidArgument, "notification %.80q: %w", n.msg.Name, err)
	}
	return nil
}

// deliver sends a batch's notifications, and then calls done. A failed delivery is logged, and changes no state.
func (e *Engine) deliver(ctx context.Context, messages []pendingNotification, done func()) {
	spawned := e.spawn(func() {
		defer done()
		for _, m := range messages {
			if err := e.notify(ctx, m.to, m.msg); err != nil {
				e.log.Warn("notification not delivered", zap.String("name", m.msg.Name), zap.Error(err))
			}
		}
	})
	if !spawned {
		done()
	}
}
