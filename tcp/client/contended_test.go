package client

import (
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/clock"
	"kvferry/core/hostmem"
	"kvferry/core/spin"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

// contended has the processors count as contended until the test has ended.
func contended(t *testing.T) {
	t.Helper()
	before := testProcessors
	testProcessors = sockio.NewProcessors(2)
	testProcessors.Contention = &spin.Contention{}
	testProcessors.HoldUntil(clock.Now() + time.Hour)
	t.Cleanup(func() { testProcessors = before })
}

// unanswered are an engine and its one lane, and a batch on it whose answer comes after the channel is closed.
func unanswered(t *testing.T) (b *core.Batch, l *lane, answer chan struct{}) {
	t.Helper()
	far, near := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	answer = make(chan struct{})
	p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) {
		var h wire.Header
		for n := 0; v.Header(&h); n++ {
			if n == 1 {
				<-answer
			}
			if !v.Obey(h) {
				return
			}
		}
	}, far)
	e := newEngine(t, tcptest.OneLane)
	request := tcptest.Ask(core.Write, near, tcptest.OpenSegment(t, e, p.Name), far)
	tcptest.Completes(t, tcptest.Submit(t, e, request))
	b = tcptest.Submit(t, e, request)
	return b, onlyPeer(t, e).listed().lanes[0].(*lane), answer
}

func TestAThreadThatSleepsOnALaneReceivesItsAnswerItself(t *testing.T) {
	contended(t)
	b, l, answer := unanswered(t)
	l.setSpinning(true)
	defer l.setSpinning(false)
	close(answer)
	for !b.Done() {
		l.assistAsleep(time.Hour, b.Done)
	}
	tcptest.Completes(t, b)
}

func TestWhileAThreadSleepsOnALaneNobodyElseReceives(t *testing.T) {
	contended(t)
	b, l, answer := unanswered(t)
	asked := false
	for !asked {
		l.assistAsleep(0, func() bool {
			asked = true
			require.False(t, l.assistAsleep(time.Hour, func() bool { return false }), "another thread's answer could come meanwhile")
			return false
		})
	}
	close(answer)
	tcptest.Completes(t, b)
}

func TestAThreadDoesNotSleepOnALaneForWhatIsDone(t *testing.T) {
	contended(t)
	b, l, answer := unanswered(t)
	for !l.assistAsleep(time.Hour, func() bool { return true }) {
	}
	close(answer)
	tcptest.Completes(t, b)
}

func TestTransfersCompleteOnContendedProcessors(t *testing.T) {
	contended(t)
	for _, ways := range []struct {
		name     string
		sameHost bool
	}{{"TCP", false}, {"this host", true}} {
		t.Run(ways.name, func(t *testing.T) {
			_, e, memory, local, id := sameHost(t, 64<<10, func(c *core.Config) { c.SameHost = ways.sameHost })
			for i := range 200 {
				op := []core.Opcode{core.Write, core.Read}[i%2]
				tcptest.Fill(local, byte(i))
				tcptest.Fill(memory, byte(i+1))
				end := e.Expect(id)
				b := tcptest.Submit(t, e, tcptest.Scattered(op, local, id, memory, 4, 4096)...)
				if i%3 > 0 { // or the caller has changed its mind
					e.Assist(b, id)
				}
				end()
				tcptest.Completes(t, b)
				for _, r := range tcptest.Scattered(op, local, id, memory, 4, 4096) {
					require.Equal(t, hostmem.At(r.Local, r.Length), hostmem.At(uintptr(r.Remote), r.Length))
				}
			}
		})
	}
}

func TestALaneWakesNobodyForAnAnswerThatTheSenderExpects(t *testing.T) {
	contended(t)
	b, l, answer := unanswered(t)
	close(answer)
	tcptest.Completes(t, b)
	first, second := l.expect(), l.expect()
	require.False(t, l.expected.spinning, "nothing was sent")
	l.spinIfExpected()
	l.spinIfExpected()
	first()
	require.True(t, l.expected.spinning)
	second()
	require.False(t, l.expected.spinning)
	l.spinIfExpected()
	require.False(t, l.expected.spinning, "nobody expects an answer")
}

func TestAnAnswerIsExpectedOnContendedProcessorsOnly(t *testing.T) {
	_, e, memory, local, id := sameHost(t, 4096, tcptest.OneLane)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, local, id, memory)))
	p := onlyPeer(t, e)
	l := p.listed().lanes[0].(*lane)
	for _, holds := range []bool{false, true} {
		p.answers.Contention = &spin.Contention{}
		if holds {
			p.answers.Contention.HoldUntil(clock.Now() + time.Hour)
		}
		end := e.Expect(id)
		require.Equal(t, holds, l.expected.callers.Load() == 1)
		end()
		require.Zero(t, l.expected.callers.Load())
	}
}
