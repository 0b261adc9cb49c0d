package core

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/fair"
	"kvferry/core/metadata"
	"kvferry/core/metrics"
	"kvferry/core/security"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// notificationCost is the memory that the engine spends on a notification beside its text, in bytes.
const notificationCost = 256

// refusalPeriod is the shortest time between log lines about refused notifications.
const refusalPeriod = 10 * time.Second

// inbox keeps received notifications until they are fetched.
type inbox struct {
	limit int        // messages
	bytes *fair.Gate // shares the memory between the senders' addresses
	log   *zap.Logger
	count *metrics.Engine

	mu       sync.Mutex
	messages []metadata.Notification
	rooms    []*fair.Place // of the messages

	refused fair.Tally

	arrived atomic.Pointer[func()] // see Engine.OnMessage
}

func newInbox(c *Config, count *metrics.Engine, log *zap.Logger) *inbox {
	return &inbox{
		limit: c.MaxNotifications, bytes: fair.New(fair.Options{Limit: int64(c.MaxNotifyBytes)}), log: log, count: count,
		refused: fair.Tally{Period: refusalPeriod},
	}
}

// receive keeps a message of a peer, or returns an error, which the sender gets.
func (b *inbox) receive(n metadata.Notification, from netip.Addr) error {
	err := b.put(n, from)
	if err == nil {
		b.count.NotificationsReceived.Add(1)
		return nil
	}
	b.count.NotificationsRefused.Add(1)
	if count, report := b.refused.Add(); report {
		b.log.Warn("a peer's notification was refused", zap.Stringer("peer", from), zap.String("name", fmt.Sprintf("%.80q", n.Name)),
			zap.Int("notifications refused since the last such message", count), zap.Error(err))
	}
	return err
}

// put keeps a message from an address, or returns an error. The zero address is the program's own.
func (b *inbox) put(n metadata.Notification, from netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.messages) >= b.limit {
		return fmt.Errorf("%d notifications wait to be fetched, the maximum (MC_HANDSHAKE_MAX_NOTIFY_ENTRIES)", b.limit)
	}
	room, err := b.bytes.Enter(from, int64(len(n.Name)+len(n.Text)+notificationCost), nil)
	if err != nil {
		return fmt.Errorf("bytes of notifications that wait to be fetched (KVFERRY_NOTIFY_BYTES): %w", err)
	}
	b.messages = append(b.messages, n)
	b.rooms = append(b.rooms, room)
	if tell := b.arrived.Load(); tell != nil {
		(*tell)()
	}
	return nil
}

func (b *inbox) drain() []metadata.Notification {
	b.mu.Lock()
	messages, rooms := b.messages, b.rooms
	b.messages, b.rooms = nil, nil
	b.mu.Unlock()
	for _, room := range rooms {
		room.Leave()
	}
	return messages
}

// waiting is how many messages wait to be fetched, and the memory that they take.
func (b *inbox) waiting() (messages int, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.messages), b.bytes.Held()
}

// Notifications returns the messages received since the last call, in order.
func (e *Engine) Notifications() []metadata.Notification { return e.inbox.drain() }

// OnMessage has tell called for each notification that is received from now on. tell must neither block nor call the engine.
func (e *Engine) OnMessage(tell func()) { e.inbox.arrived.Store(&tell) }

// Notify sends a message to a segment's owner, and returns when the owner has accepted it.
func (e *Engine) Notify(id SegmentID, n metadata.Notification) error { return e.notify(e.ctx, id, n) }

func (e *Engine) notify(ctx context.Context, id SegmentID, n metadata.Notification) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	err := e.send(ctx, id, n)
	if err != nil {
		e.metrics.NotificationsNotSent.Add(1)
	} else {
		e.metrics.NotificationsSent.Add(1)
	}
	return err
}

func (e *Engine) send(ctx context.Context, id SegmentID, n metadata.Notification) error {
	if id == LocalSegment {
		n = metadata.Notification{Name: characters(n.Name), Text: characters(n.Text)}
		if err := e.inbox.put(n, netip.Addr{}); err != nil {
			return status.Errorf(status.Socket, "notification %.80q refused: %w", n.Name, err)
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
	d := s.Descriptor()
	err = e.notifierOf(d).SendNotify(ctx, peer, n)
	if errors.Is(err, security.ErrOtherEngine) { // perhaps the owner has restarted
		if d, refreshErr := s.Refresh(ctx, d); refreshErr == nil {
			err = e.notifierOf(d).SendNotify(ctx, peer, n)
		} else {
			err = status.Errorf(status.Socket, "%w; and the descriptor cannot be fetched again: %w", err, refreshErr)
		}
	}
	if code := status.Of(err, status.Socket); code == status.DNS || code == status.RejectHandshake {
		return status.Errorf(status.Socket, "%w", err) // callers know one code for a message that was not accepted
	}
	return err
}

// notifierOf sends notifications to the owner of a segment with this descriptor. With the mode require no other engine takes them.
func (e *Engine) notifierOf(d *metadata.Descriptor) metadata.Client {
	c := e.client
	c.SpeaksTLS = d.TLS > 0
	if e.policy.Mode() == security.Require {
		c.Identity = d.Identity
	}
	return c
}

// characters is text as a peer would receive it: each byte that is not UTF-8 becomes U+FFFD.
func characters(text string) string { return string([]rune(text)) }

// Probe asks the owner of a segment name whether it is alive.
func (e *Engine) Probe(name string) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	if known, err := e.segmentName(name); err != nil || known == e.name {
		return err
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
	client := e.client
	if e.policy.Mode() == security.Require {
		client.Identity = e.identity // as long as that of the peer
	}
	if err := client.CheckNotify(n.msg); err != nil {
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
