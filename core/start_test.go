package core_test

import (
	"errors"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/metrics"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// towards is a WRITE of so many bytes to the segment of that name.
func towards(segment string, lengths ...uint64) *core.Transfer {
	t := &core.Transfer{Segment: segment, Opcode: core.Write}
	for i, n := range lengths {
		t.Arrays.Local = append(t.Arrays.Local, 0x10000+uint64(i)<<12)
		t.Arrays.Remote = append(t.Arrays.Remote, 0x20000+uint64(i)<<12)
		t.Arrays.Lengths = append(t.Arrays.Lengths, n)
	}
	return t
}

func TestAStartedTransferToAnOpenSegmentIsSubmittedAtOnce(t *testing.T) {
	p := startPair(t, nil)
	b, err := p.Start(towards(p.peer.Name(), 16, 32))
	require.NoError(t, err)
	require.Equal(t, []core.Request{
		{Opcode: core.Write, Local: 0x10000, Target: p.segment, Remote: 0x20000, Length: 16},
		{Opcode: core.Write, Local: 0x11000, Target: p.segment, Remote: 0x21000, Length: 32},
	}, requestsOf(p.transport))
	p.transport.SettleAll(nil)
	require.Equal(t, core.Summary{Tasks: 2, Completed: 2, Bytes: 48}, b.Summary())
	require.Positive(t, b.Took())
	_, failed := b.Failure()
	require.False(t, failed)
}

func TestAStartedTransferOpensItsSegment(t *testing.T) {
	p := startPair(t, nil)
	other := startPeer(t, p.directory)
	what := towards(other.Name(), 16)
	b, err := p.Start(what)
	require.NoError(t, err)
	clear(what.Arrays.Lengths) // the caller's again
	eventually(t, func() bool { return len(requestsOf(p.transport)) == 1 })
	require.EqualValues(t, 16, requestsOf(p.transport)[0].Length)
	p.transport.SettleAll(nil)
	wait(t, b)
	require.NoError(t, b.Err())
}

func TestTheLogCallsAFailedOpenNoTransfer(t *testing.T) {
	observed, logs := observer.New(zap.WarnLevel)
	p := startPair(t, func(o *core.Options) { o.Log = zap.New(observed) })
	for _, start := range []*core.Transfer{{Segment: "nobody:1"}, towards("nobody:1", 16)} {
		b, err := p.Start(start)
		require.NoError(t, err)
		wait(t, b)
	}
	require.Equal(t, 1, logs.FilterMessage("request to a peer failed").Len())
	require.Equal(t, 1, logs.FilterMessage("transfer failed").Len())
}

func TestAStartWithoutRequestsOpensItsSegment(t *testing.T) {
	p := startPair(t, nil)
	other := startPeer(t, p.directory)
	b, err := p.Start(towards(other.Name()))
	require.NoError(t, err)
	wait(t, b)
	require.NoError(t, b.Err())
	_, open, err := p.Opened(other.Name())
	require.NoError(t, err)
	require.True(t, open)

	b, err = p.Start(towards("127.0.0.1:1"))
	require.NoError(t, err)
	wait(t, b)
	found, failed := b.Failure()
	require.True(t, failed)
	require.Equal(t, -1, found.Index)
	require.Equal(t, metrics.NoMetadata, found.Reason, "%v", found.Err)
}

func TestAStartedPlanMovesItsRunsAndSendsItsMessageAtTheEnd(t *testing.T) {
	p := startPair(t, nil)
	message := metadata.Notification{Name: "request 7", Text: "is there"}
	b, err := p.Start(&core.Transfer{Segment: p.peer.Name(), Opcode: core.Write, Plan: heads(t), Notify: &message})
	require.NoError(t, err)
	require.Len(t, requestsOf(p.transport), len(headsSources))
	require.Empty(t, p.peer.Notifications())
	p.transport.SettleAll(nil)
	wait(t, b)
	require.Equal(t, []metadata.Notification{message}, p.peer.Notifications())
}

func TestAMessageAloneFailsWhenThePeerDoesNotAcceptIt(t *testing.T) {
	p := startPair(t, nil)
	told := make(chan struct{}, 1)
	p.peer.OnMessage(func() { told <- struct{}{} })
	message := metadata.Notification{Name: "request 7", Text: "is there"}
	b, err := p.Start(&core.Transfer{Segment: p.peer.Name(), Notify: &message})
	require.NoError(t, err)
	wait(t, b)
	require.NoError(t, b.Err())
	receive(t, told)
	require.Equal(t, []metadata.Notification{message}, p.peer.Notifications())

	require.NoError(t, p.peer.Close())
	b, err = p.Start(&core.Transfer{Segment: p.peer.Name(), Notify: &message})
	require.NoError(t, err)
	wait(t, b)
	require.Error(t, b.Err())
}

func TestATimeLimitEndsWhatHasNotEndedAndSaysHowFarItCame(t *testing.T) {
	p := startPair(t, nil)
	b, err := p.Start(towards(p.peer.Name(), 1000, 3000))
	require.NoError(t, err)
	held := p.transport.Held()[0]
	held.Settle(0, 1000, nil)
	b.Limit(time.Millisecond)
	wait(t, b)
	require.Equal(t, []core.State{core.Completed, core.TimedOut}, states(t, b))
	require.ErrorIs(t, b.Err(), core.ErrTimeLimit)
	require.ErrorContains(t, b.Err(), "1ms: 1000 of 4000 bytes are known to have arrived")
	found, _ := b.Failure()
	require.Equal(t, metrics.TimedOut, found.Reason)
}

func TestAStartedTransferHasATimeLimit(t *testing.T) {
	submitted := make(chan *transporttest.Held, 1)
	p := startPairWith(t, &transporttest.Transport{OnSubmit: func(h *transporttest.Held) { submitted <- h }}, nil)
	what := towards(p.peer.Name(), 16)
	what.Limit = time.Millisecond
	b, err := p.Start(what)
	require.NoError(t, err)
	wait(t, b)
	require.ErrorIs(t, receive(t, submitted).Aborted(), core.ErrTimeLimit)
	require.ErrorIs(t, b.Err(), core.ErrTimeLimit)
}

func TestAFailureNamesTheFirstRequestThatFailed(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 4)
	p.submit(t, b, p.writes(10)...).SettleRest(nil)
	held := p.submit(t, b, p.writes(10, 20, 30)...)
	reason := status.Errorf(status.AddressNotRegistered, "the peer has no such memory")
	held.Settle(0, 10, nil)
	held.Settle(10, 20, reason)
	held.Settle(30, 30, errors.New("later"))
	found, failed := b.Failure()
	require.True(t, failed)
	require.Equal(t, core.Failure{Reason: metrics.Rejected, Index: 2, Request: p.writes(20)[0], Err: reason}, found)
}

func TestAStartThatCannotBeIsRefused(t *testing.T) {
	p := startPair(t, nil)
	what := towards(p.peer.Name(), 1)
	what.Opcode = 7
	_, err := p.Start(what)
	require.ErrorContains(t, err, "opcode 7")
	what = towards(p.peer.Name(), 1)
	what.Stream = &core.Stream{Runtime: "cuda"}
	_, err = p.Start(what)
	require.ErrorContains(t, err, `no streams of "cuda"`)
	require.NoError(t, p.Close())
	_, err = p.Start(towards(p.peer.Name(), 1))
	require.ErrorIs(t, err, core.ErrClosed)
}

func TestAStartedTransferWaitsForTheTurnOfItsStreamAndTheStreamForIt(t *testing.T) {
	p, s := startOrdered(t, nil)
	what := towards(p.peer.Name(), 16)
	what.Stream = &core.Stream{Runtime: "cuda", Handle: streamHandle}
	b, err := p.Start(what)
	require.NoError(t, err)
	require.Empty(t, p.transport.Held())
	gone := s.reach()
	eventually(t, func() bool { return len(p.transport.Held()) == 1 })
	select {
	case <-gone:
		t.Fatal("the stream went on")
	default:
	}
	p.transport.SettleAll(nil)
	receive(t, gone)
	require.NoError(t, b.Err())
	require.Equal(t, core.Summary{Tasks: 1, Completed: 1, Bytes: 16}, b.Summary())
}

func TestATransferOfAStreamThatIsGivenUpBeforeItsTurnMovesNothing(t *testing.T) {
	p, s := startOrdered(t, nil)
	what := towards(p.peer.Name(), 16)
	what.Stream = &core.Stream{Runtime: "cuda", Handle: streamHandle}
	b, err := p.Start(what)
	require.NoError(t, err)
	p.CancelBatch(b)
	wait(t, b)
	require.ErrorIs(t, b.Err(), core.ErrDiscarded)
	receive(t, s.reach())
	require.Empty(t, p.transport.Held())
}

func TestAStreamGoesOnWhenTheTimeOfItsTransferIsOver(t *testing.T) {
	p, s := startOrdered(t, nil)
	what := towards(p.peer.Name(), 16)
	what.Stream, what.Limit = &core.Stream{Runtime: "cuda", Handle: streamHandle}, time.Millisecond
	b, err := p.Start(what)
	require.NoError(t, err)
	receive(t, s.reach())
	require.ErrorIs(t, b.Err(), core.ErrTimeLimit)
}

func TestAStreamThatRefusesItsTransferIsAnError(t *testing.T) {
	p, s := startOrdered(t, nil)
	s.refuse = errors.New("the stream is being captured")
	what := towards(p.peer.Name(), 16)
	what.Stream = &core.Stream{Runtime: "cuda", Handle: streamHandle}
	_, err := p.Start(what)
	require.ErrorIs(t, err, s.refuse)
}

func TestSettingsAreKnownByTheirNames(t *testing.T) {
	for _, name := range []string{"KVFERRY_MAX_SESSIONS", "MC_RETRY_CNT", "MC_MIN_PRC_PORT"} {
		require.True(t, core.IsSetting(name), name)
	}
	for _, name := range []string{"", "KVFERRY_MAX_SESSION", "PATH"} {
		require.False(t, core.IsSetting(name), name)
	}
}
