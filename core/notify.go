package core

import (
	"context"
	"sync"

	"kvferry/core/metadata"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// inbox keeps the notifications that came in until they are fetched.
type inbox struct {
	mu       sync.Mutex
	messages []metadata.Notification
	limit    int
}

// put keeps a message, or reports false when there are as many as the limit allows: the sender is told.
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

// Notify sends a message to a segment's owner and returns when it has been taken.
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
		return status.Errorf(status.Socket, "%w", err) // callers know one code for a message that was not taken
	}
	return err
}

// characters is text as it arrives where it is sent: each byte that is not UTF-8 is U+FFFD.
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

// deliver sends a batch's notifications and then calls done. A failed delivery is logged and changes no status.
func (e *Engine) deliver(ctx context.Context, messages []pendingNotification, done func()) {
	started := e.spawn(func() {
		defer done()
		for _, m := range messages {
			if err := e.notify(ctx, m.to, m.msg); err != nil {
				e.log.Warn("notification not delivered", zap.String("name", m.msg.Name), zap.Error(err))
			}
		}
	})
	if !started {
		done()
	}
}
