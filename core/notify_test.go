package core_test

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

var hello = metadata.Notification{Name: "decode-7", Text: "layers 0 to 31 are there"}

// holdDelivery keeps notifications from leaving until release is called; begun receives as each is about to.
func (p *pair) holdDelivery() (begun <-chan struct{}, release func()) {
	started, gate := make(chan struct{}, 16), make(chan struct{})
	p.directory.SetFault(func(op metadatatest.Operation, _ string) error {
		if op == metadatatest.HandshakeAddress {
			started <- struct{}{}
			<-gate
		}
		return nil
	})
	return started, func() { close(gate) }
}

// silence has the peer's handshake port be one that takes connections and never answers; taken receives as it does.
func (p *pair) silence(t *testing.T) (taken <-chan struct{}) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	accepted := make(chan struct{}, 16)
	var conns []net.Conn
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns = append(conns, conn)
			accepted <- struct{}{}
		}
	})
	t.Cleanup(func() {
		listener.Close()
		running.Wait()
		for _, conn := range conns {
			conn.Close()
		}
	})
	p.directory.SetAddress(p.peer.Name(), listener.Addr().String())
	return accepted
}

func TestNotificationArrivesBeforeTheLastTaskIsReported(t *testing.T) {
	p := startPair(t, nil)
	begun, release := p.holdDelivery()
	b := p.batch(t, 2)
	require.NoError(t, p.Submit(b, p.writes(10, 10), &hello))
	held := p.transport.Held()[0]
	held.Settle(10, 10, nil)
	require.Equal(t, []core.State{waiting, completed}, states(t, b))
	held.Settle(0, 10, nil)
	receive(t, begun)
	require.Equal(t, []core.State{waiting, completed}, states(t, b), "the message has not been delivered")
	requireCode(t, status.BatchBusy, p.FreeBatch(b))
	release()
	wait(t, b)
	require.Equal(t, []core.State{completed, completed}, states(t, b))
	require.Equal(t, []metadata.Notification{hello}, p.peer.Notifications())
	require.Empty(t, p.peer.Notifications(), "they are given out once")
}

func TestNotificationWaitsForEverySubmissionOfTheBatch(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 3)
	earlier := p.submit(t, b, p.writes(10)...)
	require.NoError(t, p.Submit(b, p.writes(10), &hello))
	later := p.submit(t, b, p.writes(10)...)

	p.transport.Held()[1].SettleRest(nil)
	later.SettleRest(nil)
	require.Equal(t, []core.State{waiting, completed, completed}, states(t, b))
	require.Empty(t, p.peer.Notifications())
	earlier.SettleRest(nil)
	wait(t, b)
	require.Equal(t, []metadata.Notification{hello}, p.peer.Notifications())
}

func TestNotificationsOfSeveralSubmissionsArriveInOrder(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 10)
	var sent []metadata.Notification
	for i := range 10 {
		n := metadata.Notification{Name: "n", Text: fmt.Sprint(i)}
		sent = append(sent, n)
		require.NoError(t, p.Submit(b, p.writes(1), &n))
	}
	p.transport.SettleAll(nil)
	wait(t, b)
	require.Equal(t, sent, p.peer.Notifications())
}

func TestNoNotificationWhenATaskFailed(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 2)
	require.NoError(t, p.Submit(b, p.writes(10, 10), &hello))
	held := p.transport.Held()[0]
	held.Settle(0, 10, errBroken)
	held.Settle(10, 10, nil)
	require.True(t, b.Done())
	require.Equal(t, []core.State{failed, completed}, states(t, b))
	require.Empty(t, p.peer.Notifications())
}

func TestFailedDeliveryChangesNoStatusAndIsLogged(t *testing.T) {
	observed, logs := observer.New(zapcore.WarnLevel)
	p := startPair(t, func(o *core.Options) { o.Log = zap.New(observed) })
	p.directory.SetFault(func(op metadatatest.Operation, _ string) error {
		if op == metadatatest.HandshakeAddress {
			return errBroken
		}
		return nil
	})
	b := p.batch(t, 1)
	require.NoError(t, p.Submit(b, p.writes(10), &hello))
	p.transport.SettleAll(nil)
	wait(t, b)
	require.Equal(t, []core.State{completed}, states(t, b))
	require.NoError(t, b.Err())
	require.Len(t, logs.FilterMessage("notification not delivered").All(), 1)
}

func TestNotificationNeedsARequestToGoWith(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 1)
	requireCode(t, status.InvalidArgument, p.Submit(b, nil, &hello))
	require.NoError(t, p.Submit(b, nil, nil))
}

func TestNotificationGoesWithEmptyRequestsToo(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 2)
	require.NoError(t, p.Submit(b, p.writes(0, 0), &hello))
	wait(t, b)
	require.Equal(t, []core.State{completed, completed}, states(t, b))
	require.Equal(t, []metadata.Notification{hello}, p.peer.Notifications())
}

func TestDiscardDoesNotWaitForADelivery(t *testing.T) {
	p := startPair(t, nil)
	taken := p.silence(t)
	b := p.batch(t, 1)
	require.NoError(t, p.Submit(b, p.writes(10), &hello))
	p.transport.SettleAll(nil)
	receive(t, taken)
	require.Equal(t, []core.State{waiting}, states(t, b))

	discarded := make(chan error, 1)
	go func() { discarded <- p.DiscardBatch(b) }()
	require.NoError(t, receive(t, discarded))
}

func TestUnregisterDoesNotWaitForADelivery(t *testing.T) {
	p := startPair(t, nil)
	p.SetGrace(time.Millisecond)
	taken := p.silence(t)
	local := pages(t, 1<<12)
	require.NoError(t, p.Register(at(local), 1<<12, "cpu:0", true))
	b := p.batch(t, 1)
	req := core.Request{Opcode: core.Write, Local: at(local), Target: p.segment, Remote: 1, Length: 8}
	require.NoError(t, p.Submit(b, []core.Request{req}, &hello))
	p.transport.SettleAll(nil)
	receive(t, taken)

	unregistered := make(chan error, 1)
	go func() { unregistered <- p.Unregister(at(local)) }()
	require.NoError(t, receive(t, unregistered))
	wait(t, b)
	require.Equal(t, []core.State{completed}, states(t, b), "its bytes had arrived")
}

func TestCloseDoesNotWaitForADelivery(t *testing.T) {
	p := startPair(t, nil)
	taken := p.silence(t)
	b := p.batch(t, 1)
	require.NoError(t, p.Submit(b, p.writes(10), &hello))
	p.transport.SettleAll(nil)
	receive(t, taken)
	closed := make(chan error, 1)
	go func() { closed <- p.Close() }()
	require.NoError(t, receive(t, closed))
	require.True(t, b.Done())
}

func TestNotify(t *testing.T) {
	p := startPair(t, nil)
	require.NoError(t, p.Notify(p.segment, hello))
	require.Equal(t, []metadata.Notification{hello}, p.peer.Notifications())

	require.NoError(t, p.Notify(core.LocalSegment, hello))
	require.Equal(t, []metadata.Notification{hello}, p.Notifications())

	requireCode(t, status.Metadata, p.Notify(p.segment+1, hello))
	requireCode(t, status.Metadata, p.Notify(-1, hello))

	require.NoError(t, p.peer.Close())
	p.directory.SetAddress(p.peer.Name(), p.peer.Name())
	require.Error(t, p.Notify(p.segment, hello))
}

func TestNotifyToAPeerThatIsGone(t *testing.T) {
	p := startPair(t, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	p.directory.SetAddress(p.peer.Name(), listener.Addr().String())
	err = p.Notify(p.segment, hello)
	requireCode(t, status.Socket, err)
	require.ErrorContains(t, err, listener.Addr().String())
}

func TestFullInboxRejectsNotifications(t *testing.T) {
	serving := &transporttest.Transport{Address: core.Endpoint{Port: 9, ProtoVersion: 2}}
	p := startPairWith(t, serving, func(o *core.Options) { o.Config.MaxNotifications = 2 })
	back := open(t, p.peer, p.Name())
	for i := range 2 {
		require.NoError(t, p.peer.Notify(back, metadata.Notification{Name: fmt.Sprint(i)}))
	}
	requireCode(t, status.Socket, p.peer.Notify(back, hello)) // the sender is told
	requireCode(t, status.Socket, p.Notify(core.LocalSegment, hello))
	require.Equal(t, []metadata.Notification{{Name: "0"}, {Name: "1"}}, p.Notifications())
	require.NoError(t, p.peer.Notify(back, hello))
	require.Equal(t, []metadata.Notification{hello}, p.Notifications())
}

func TestOneHostCannotFillTheInboxWithLongNotifications(t *testing.T) {
	observed, logs := observer.New(zapcore.WarnLevel)
	serving := &transporttest.Transport{Address: core.Endpoint{Port: 9, ProtoVersion: 2}}
	p := startPairWith(t, serving, func(o *core.Options) { o.Config.MaxNotifyBytes, o.Log = 4<<20, zap.New(observed) })
	back := open(t, p.peer, p.Name())
	long := metadata.Notification{Name: "long", Text: strings.Repeat("a", 512<<10)}
	taken := 0
	for ; taken < 8; taken++ {
		err := p.peer.Notify(back, long)
		if err == nil {
			continue
		}
		requireCode(t, status.Socket, err)
		require.ErrorContains(t, err, "KVFERRY_NOTIFY_BYTES", "the sender learns the reason")
		break
	}
	require.Equal(t, 3, taken, "half of the memory")
	require.Error(t, p.peer.Notify(back, long))
	refusals := logs.FilterMessage("a peer's notification was refused").All()
	require.Len(t, refusals, 1, "one line in a while")
	require.Contains(t, fmt.Sprint(refusals[0].ContextMap()["peer"]), "127.0.0.1")

	require.NoError(t, p.Notify(core.LocalSegment, long), "the program's own have the other half")
	require.Len(t, p.Notifications(), taken+1)
	require.NoError(t, p.peer.Notify(back, long), "the memory is given back")
}

func TestProbe(t *testing.T) {
	p := startPair(t, nil)
	require.NoError(t, p.Probe(p.Name()))
	require.NoError(t, p.Probe(p.peer.Name()))
	require.Error(t, p.Probe("127.0.0.1:1"))
	p.silence(t)
	probed := make(chan error, 1)
	go func() { probed <- p.Probe(p.peer.Name()) }()
	require.NoError(t, p.Close())
	require.Error(t, receive(t, probed), "closing ends it")
}

func TestANotificationThatFitsNoFrameIsRefusedWithItsBatch(t *testing.T) {
	p := startPair(t, nil)
	limit := p.Config().HandshakeMaxLength
	for name, tooLong := range map[string]metadata.Notification{
		"a long name":                    {Name: strings.Repeat("a", limit)},
		"a long text":                    {Text: strings.Repeat("a", limit)},
		"a text that is long when coded": {Text: strings.Repeat("\x01", limit/6)},
	} {
		t.Run(name, func(t *testing.T) {
			b := p.batch(t, 1)
			err := p.Submit(b, p.writes(10), &tooLong)
			requireCode(t, status.InvalidArgument, err)
			require.ErrorContains(t, err, "MC_HANDSHAKE_MAX_LENGTH")
			require.Empty(t, p.transport.Held())
			require.Zero(t, b.Summary().Tasks)
			require.NoError(t, p.FreeBatch(b))
		})
	}
}

func TestTheLongestNotificationIsDelivered(t *testing.T) {
	p := startPair(t, nil)
	longest := metadata.Notification{Name: "a", Text: strings.Repeat("a", p.Config().HandshakeMaxLength/6)}
	for longer := longest; ; longest = longer { // the longest that is not refused
		longer.Text += strings.Repeat("a", 64<<10)
		b := p.batch(t, 1)
		if p.Submit(b, p.writes(1), &longer) != nil {
			break
		}
		p.transport.SettleAll(nil)
		wait(t, b)
		require.Equal(t, []metadata.Notification{longer}, p.peer.Notifications())
	}
	require.Greater(t, len(longest.Text), p.Config().HandshakeMaxLength*9/10)
}
