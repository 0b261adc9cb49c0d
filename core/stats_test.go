package core_test

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/metrics"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
)

// peerOf is what the statistics say of a peer.
func peerOf(t testing.TB, e *core.Engine, name string) metrics.InitiatorPeer {
	t.Helper()
	for _, p := range e.Stats().Initiator {
		if p.Peer == name {
			return p
		}
	}
	require.Fail(t, "there is no such peer", name)
	return metrics.InitiatorPeer{}
}

func TestABatchThatIsSeenToBeDoneIsCounted(t *testing.T) {
	p := startPair(t, nil)
	const batches = 50
	for i := range batches {
		b := p.batch(t, 3)
		reqs := p.writes(10, 20, 30)
		reqs[1].Opcode = core.Read
		held := p.submit(t, b, reqs...)
		s := p.Stats()
		require.Equal(t, metrics.Unfinished{Batches: 1, Requests: 3, Bytes: 60}, s.Unfinished)
		require.EqualValues(t, i, s.Batches["mixed"].Count)
		ended := make(chan struct{})
		go func() {
			held.SettleRest(nil)
			close(ended)
		}()
		for !b.Done() {
			runtime.Gosched() // QEMU does not interrupt a loop without calls, for which the garbage collector would wait
		}
		s = p.Stats()
		require.EqualValues(t, i+1, s.Batches["mixed"].Count)
		require.Equal(t, map[string]uint64{"read": uint64(i + 1), "write": 2 * uint64(i+1)}, s.Requests)
		require.Equal(t, map[string]uint64{"read": 20 * uint64(i+1), "write": 40 * uint64(i+1)}, s.Bytes)
		<-ended
		require.NoError(t, p.FreeBatch(b))
	}
	s := p.Stats()
	require.Zero(t, s.Unfinished)
	require.Zero(t, s.FailedBatches)
	peer := peerOf(t, p.Engine, p.peer.Name())
	require.EqualValues(t, batches, peer.Read.Requests)
	require.EqualValues(t, 2*batches, peer.Write.Requests)
	require.Empty(t, peer.Failures)
}

func TestABatchThatIsUsedAgainIsCountedAgain(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 10)
	for i := range 3 {
		p.submit(t, b, p.writes(1, 2)...).SettleRest(nil)
		wait(t, b)
		require.EqualValues(t, i+1, p.Stats().Batches["write"].Count)
		require.EqualValues(t, 2*(i+1), p.Stats().Requests["write"])
	}
}

func TestEachFailedRequestHasOneReason(t *testing.T) {
	reasons := map[string]error{
		"rejected":     status.Errorf(status.AddressNotRegistered, "no such range"),
		"connection":   status.Errorf(status.Socket, "reset"),
		"stalled":      status.Errorf(status.Socket, "%w for 5 s", core.ErrStalled),
		"peer":         status.Errorf(status.Endpoint, "code 3"),
		"local_memory": status.Errorf(status.InvalidArgument, "it is not mapped"),
		"security":     status.Errorf(status.RejectHandshake, "another secret"),
		"metadata":     status.Errorf(status.Metadata, "not found"),
		"timeout":      fmt.Errorf("%w: it took long", core.ErrSliceTimeout),
		"cancelled":    fmt.Errorf("a: %w", core.ErrDiscarded),
		"closed":       status.Errorf(status.Context, "%w", core.ErrClosed),
		"other":        errors.New("who knows"),
	}
	require.Len(t, reasons, len(metrics.Reasons()))
	p := startPair(t, nil)
	failures := uint64(0)
	for name, err := range reasons {
		b := p.batch(t, 3)
		held := p.submit(t, b, p.writes(10, 10, 10)...)
		held.Settle(0, 4, nil)
		held.Settle(4, 6, err)
		held.Settle(10, 10, nil)
		held.Settle(20, 5, err)
		held.Settle(25, 5, core.ErrPartFailed)
		wait(t, b)
		failures += 2
		require.EqualValues(t, 2, p.Stats().Failures[name], name)
		require.EqualValues(t, 2, peerOf(t, p.Engine, p.peer.Name()).Failures[name], name)
	}
	s := p.Stats()
	require.EqualValues(t, failures/2, s.FailedBatches)
	require.EqualValues(t, failures/2, s.Requests["write"])
	require.EqualValues(t, failures/2, s.Batches["write"].Count, "batches that failed are among them")
	sum := uint64(0)
	for _, n := range s.Failures {
		sum += n
	}
	require.Equal(t, failures, sum)
}

func TestWhatTheEngineMovesWithinItselfIsCountedAsLocal(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	require.Empty(t, e.Stats().Initiator)
	memory := pages(t, 8192)
	require.NoError(t, e.Register(at(memory), 8192, "cpu:0", true))
	b, err := e.AllocateBatch(2)
	require.NoError(t, err)
	require.NoError(t, e.Submit(b, []core.Request{
		{Opcode: core.Read, Local: at(memory), Target: core.LocalSegment, Remote: uint64(at(memory)) + 4096, Length: 1000},
		{Opcode: core.Write, Local: at(memory), Target: core.LocalSegment, Remote: 1 << 40, Length: 1000},
	}, nil))
	wait(t, b)
	own := peerOf(t, e, metrics.OwnMemory)
	require.Equal(t, metrics.Moved{Requests: 1, Bytes: map[string]uint64{"tcp": 0, "host": 0, "local": 1000}}, own.Read)
	require.Zero(t, own.Write.Requests)
	require.Equal(t, map[string]uint64{"rejected": 1}, own.Failures)
}

func TestPeersBeyondTheLimitAreCountedTogether(t *testing.T) {
	p := startPair(t, func(o *core.Options) { o.Config.MetricsPeers = 1 })
	others := []core.SegmentID{open(t, p.Engine, startPeer(t, p.directory).Name()), open(t, p.Engine, startPeer(t, p.directory).Name())}
	for _, id := range append(others, p.segment) {
		b := p.batch(t, 1)
		reqs := p.writes(100)
		reqs[0].Target = id
		p.submit(t, b, reqs...).SettleRest(nil)
		wait(t, b)
	}
	require.Len(t, p.Stats().Initiator, 2)
	require.EqualValues(t, 1, peerOf(t, p.Engine, p.peer.Name()).Write.Requests)
	require.EqualValues(t, 2, peerOf(t, p.Engine, metrics.OtherPeers).Write.Requests)
	require.NoError(t, p.RemoveLocalSegment(p.peer.Name()))
	require.Len(t, p.Stats().Initiator, 1, "a peer that was removed is forgotten")
	require.EqualValues(t, 3, p.Stats().Requests["write"], "and what was done is not")
}

func TestRequestsToTheStoreAndNotificationsAreCounted(t *testing.T) {
	p := startPair(t, nil)
	_, err := p.OpenSegment("nobody")
	require.Error(t, err)
	s := p.Stats()
	require.EqualValues(t, 2, s.Metadata["fetch"].Count)
	require.EqualValues(t, 1, s.Metadata["fetch"].Failures)
	require.Positive(t, s.Metadata["publish"].Count)
	require.Zero(t, s.Metadata["publish"].Failures)

	require.NoError(t, p.Notify(p.segment, hello))
	require.NoError(t, p.Notify(p.segment, hello))
	require.Error(t, p.Notify(1<<20, hello))
	s, there := p.Stats(), p.peer.Stats()
	require.EqualValues(t, 2, s.Notifications.Sent)
	require.EqualValues(t, 1, s.Notifications.SendFailures)
	require.EqualValues(t, 2, there.Notifications.Received)
	require.EqualValues(t, 2, there.Notifications.Waiting)
	require.Positive(t, there.Notifications.WaitingBytes)
	require.EqualValues(t, 2, there.Handshakes.Answered["notify"])
	require.Len(t, p.peer.Notifications(), 2)
	require.Zero(t, p.peer.Stats().Notifications.Waiting)
}

func TestANotificationThatFindsNoRoomIsCountedAsRefused(t *testing.T) {
	d := metadatatest.NewDirectory()
	full := startEngine(t, d, func(o *core.Options) { o.Config.MaxNotifications = 1 })
	install(t, full, &transporttest.Transport{Address: core.Endpoint{Port: 9, ProtoVersion: 2}})
	e := startPeer(t, d)
	id := open(t, e, full.Name())
	require.NoError(t, e.Notify(id, hello))
	require.Error(t, e.Notify(id, metadata.Notification{Name: "one too many"}))
	require.EqualValues(t, 1, full.Stats().Notifications.Refused)
	require.EqualValues(t, 1, full.Stats().Notifications.Received)
	require.EqualValues(t, 1, e.Stats().Notifications.SendFailures)
}

func TestStatsNameTheEngineAndItsProcess(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), func(o *core.Options) { o.Version = "1.2.3" })
	s := e.Stats()
	require.Equal(t, []string{"1.2.3", e.Name(), e.Identity(), "off"}, []string{s.Version, s.Engine, s.Identity, s.Security.Mode})
	eventually(t, func() bool { return e.Stats().Uptime > s.Uptime })
	require.Positive(t, s.Process.Goroutines)
	require.Positive(t, s.Process.Threads)
	require.Positive(t, s.Process.OpenFiles)
	require.Greater(t, s.Process.ResidentBytes, uint64(1<<20))
	require.Positive(t, s.Process.HeapBytes)
	require.Less(t, s.Uptime, time.Hour.Seconds())
}
