package tcp

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

func TestALookoutThatLooksInVainLooksEverMoreRarely(t *testing.T) {
	var l lookout
	looked := 0
	for range 100 {
		before := looked
		l.look(time.Microsecond, func() bool { looked = before + 1; return false })
	}
	require.Less(t, looked, 10)
	require.Positive(t, looked)
}

func TestALookoutThatFindsGoesOnLooking(t *testing.T) {
	var l lookout
	for range 100 {
		require.True(t, l.look(time.Hour, func() bool { return true }))
	}
}

func TestALookoutThatMostlyFindsIsNotPutOffByLateOnes(t *testing.T) {
	var l lookout
	for range 100 {
		l.look(time.Hour, func() bool { return true })
	}
	for range mostCredit {
		looked := false
		l.look(time.Microsecond, func() bool { looked = true; return false })
		require.True(t, looked)
	}
	require.True(t, l.look(time.Hour, func() bool { return true }))
}

// TestWaitersThatAssistGetTheirBytes protects the lane from the receiver and any number of waiters who receive in turn.
func TestWaitersThatAssistGetTheirBytes(t *testing.T) {
	target, initiator := engine(t), engine(t)
	const block, waiters, rounds = 4096, 4, 100
	far, near := mapped(t, waiters*block), mapped(t, waiters*block)
	require.NoError(t, target.Register(addressOf(far), uint64(len(far)), "cpu:0", true))
	id, err := initiator.OpenSegment(target.Name())
	require.NoError(t, err)
	var all sync.WaitGroup
	for w := range uintptr(waiters) {
		all.Go(func() {
			mine := near[w*block : (w+1)*block]
			move := func(op core.Opcode) bool {
				b, err := initiator.AllocateBatch(1)
				if err == nil {
					err = initiator.Submit(b, []core.Request{{Opcode: op, Local: addressOf(mine), Target: id,
						Remote: uint64(addressOf(far) + w*block), Length: block}}, nil)
				}
				initiator.Assist(b, id)
				done := make(chan struct{})
				b.OnDone(func() { close(done) })
				<-done
				return err == nil && b.Err() == nil && initiator.FreeBatch(b) == nil
			}
			for range rounds {
				sent := byte(rand.Uint32())
				for i := range mine {
					mine[i] = sent
				}
				written := move(core.Write)
				clear(mine)
				if !written || !move(core.Read) || mine[0] != sent || mine[block-1] != sent {
					t.Error("a block did not come back as it was sent")
					return
				}
			}
		})
	}
	all.Wait()
}

func TestWhoPollsForWhatIsLongDoesSoForAMoment(t *testing.T) {
	l := lookout{polling: time.Hour}
	require.False(t, l.lookForAMoment(time.Microsecond, func() bool { return false }))
}

func TestASessionThatPollsLeavesOffForAnotherOne(t *testing.T) {
	memory := mapped(t, 4096)
	h := serve(t, targetOptions{polling: time.Hour}, memory)
	first := h.dial()
	polling := h.only()
	first.send(readV2(memory[:8]))
	first.expectStatus(wire.StatusOK)
	first.expect(memory[:8])

	second := h.dial()
	require.Eventually(t, func() bool { // not at once, where it begins to look only afterwards
		second.send(readV2(memory[:8]))
		second.expectStatus(wire.StatusOK)
		second.expect(memory[:8])
		return polling.conn.in.bell.isAwaited()
	}, patience, time.Millisecond)
}
