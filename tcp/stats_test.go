package tcp

import (
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/metrics"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

// total is the sum over the paths.
func total(m metrics.Moved) (bytes uint64) {
	for _, n := range m.Bytes {
		bytes += n
	}
	return bytes
}

// served waits until the target has counted what it has sent.
func served(t *testing.T, target *core.Engine, reads uint64) metrics.TargetPeer {
	t.Helper()
	require.Eventually(t, func() bool {
		s := target.Stats()
		return len(s.Target) == 1 && s.Target[0].Read.Requests >= reads
	}, tcptest.Patience, time.Millisecond)
	return target.Stats().Target[0]
}

func TestBothSidesShowWhatTheKernelKnowsOfTheirConnections(t *testing.T) {
	const size = 1 << 20
	target, e := newEngine(t), newEngine(t, tcptest.OneLane) // another one may be about to connect
	memory, local := tcptest.Mapped(t, size), tcptest.Mapped(t, size)
	require.NoError(t, target.Register(tcptest.AddressOf(memory), size, "cpu:0", true))
	id := tcptest.OpenSegment(t, e, target.Name())
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Scattered(core.Write, local, id, memory, 1, size)...))
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Scattered(core.Read, local, id, memory, 1, size)...))

	p := e.Stats().Initiator[0]
	require.Positive(t, p.Connections.Idle)
	require.Equal(t, p.Connections.Idle, p.Flow.Connections)
	require.GreaterOrEqual(t, p.Flow.Sent, uint64(size))
	require.GreaterOrEqual(t, p.Flow.Received, uint64(size))
	require.Positive(t, p.Flow.RoundTrip)
	require.Positive(t, p.Flow.Window)
	at := target.Stats().Target[0]
	require.Equal(t, p.Flow.Connections, at.Flow.Connections)
	require.Equal(t, p.Flow.Sent-p.Flow.Retransmitted, at.Flow.Received)
}

func TestCountsAreExactAfterAKnownSeriesOfTransfers(t *testing.T) {
	const block, blocks, batches = 5000, 40, 6
	for _, path := range []struct {
		name   string
		change func(*core.Config)
	}{{"tcp", func(*core.Config) {}}, {"host", tcptest.OnOneHost}} {
		for _, way := range tcptest.Ways {
			t.Run(path.name+"/"+way.Name, func(t *testing.T) {
				target, e := newEngine(t, path.change, way.Config), newEngine(t, path.change, way.Config)
				memory, local := tcptest.Mapped(t, blocks*(block+1)), tcptest.Mapped(t, blocks*(block+1))
				tcptest.Fill(memory, 1)
				tcptest.Fill(local, 2)
				require.NoError(t, target.Register(tcptest.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
				id := tcptest.OpenSegment(t, e, target.Name())
				for range batches {
					tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Scattered(core.Write, local, id, memory, blocks, block)...))
					tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Scattered(core.Read, local, id, memory, blocks, block)...))
				}
				s := e.Stats()
				require.Len(t, s.Initiator, 1)
				p := s.Initiator[0]
				require.Equal(t, target.Name(), p.Peer)
				for _, m := range []metrics.Moved{p.Read, p.Write} {
					require.EqualValues(t, batches*blocks, m.Requests)
					require.EqualValues(t, batches*blocks*block, total(m))
					if path.name == "tcp" || way.Name != "lanes" {
						require.EqualValues(t, batches*blocks*block, m.Bytes["tcp"])
					} else {
						require.Positive(t, m.Bytes["host"])
					}
				}
				require.Empty(t, p.Failures)
				require.Zero(t, p.Queued+p.InFlight)
				require.EqualValues(t, batches, s.Batches["read"].Count)
				require.EqualValues(t, batches, s.Batches["write"].Count)
				require.Zero(t, s.FailedBatches)

				reads := uint64(batches * blocks)
				if m := p.Read.Bytes; m["host"] > 0 { // the target does not see these
					reads = m["tcp"] / block
				}
				at := served(t, target, reads)
				require.EqualValues(t, reads, at.Read.Requests)
				require.EqualValues(t, reads*block, total(at.Read))
				require.EqualValues(t, batches*blocks, at.Write.Requests)
				require.Equal(t, p.Write.Bytes, at.Write.Bytes)
				require.Zero(t, at.Refusals)
				require.EqualValues(t, p.Connected, target.Stats().Sessions.Served)
				if way.Name == "lanes" {
					require.EqualValues(t, p.Connected, p.Connections.Idle)
					require.EqualValues(t, p.Connected, at.Connections)
				}
			})
		}
	}
}

func TestEachKindOfFailureIsCountedAtItsPeer(t *testing.T) {
	for _, path := range []struct {
		name   string
		change func(*core.Config)
	}{{"tcp", func(*core.Config) {}}, {"host", tcptest.OnOneHost}} {
		t.Run(path.name, func(t *testing.T) {
			target, e := newEngine(t, path.change), newEngine(t, path.change, tcptest.FewRetries, tcptest.Impatient)
			memory, local := tcptest.Mapped(t, 1<<16), tcptest.Mapped(t, 1<<16)
			require.NoError(t, target.Register(tcptest.AddressOf(memory), 1<<15, "cpu:0", true))
			id := tcptest.OpenSegment(t, e, target.Name())
			peer := func() metrics.InitiatorPeer { return e.Stats().Initiator[0] }

			tcptest.FailsOnly(t, tcptest.Submit(t, e,
				tcptest.Ask(core.Write, local[:100], id, memory[:100]), tcptest.Ask(core.Write, local[:100], id, memory[1<<15:][:100])), 1)
			require.Equal(t, map[string]uint64{"rejected": 1}, peer().Failures)
			require.EqualValues(t, 1, peer().Write.Requests)
			require.GreaterOrEqual(t, peer().Refusals, uint64(1))

			bad := core.Request{Opcode: core.Write, Local: 4096, Target: id, Remote: uint64(tcptest.AddressOf(memory)), Length: 5000}
			tcptest.FailsOnly(t, tcptest.Submit(t, e, bad), 0)
			require.Equal(t, map[string]uint64{"rejected": 1, "local_memory": 1}, peer().Failures)

			require.NoError(t, target.Close())
			tcptest.FailsOnly(t, tcptest.Submit(t, e,
				tcptest.Ask(core.Read, local[:100], id, memory[:100]), tcptest.Ask(core.Read, local[200:300], id, memory[300:400])), 0, 1)
			require.Equal(t, map[string]uint64{"rejected": 1, "local_memory": 1, "connection": 2}, peer().Failures)
			require.Positive(t, peer().Unreachable)
			s := e.Stats()
			require.EqualValues(t, 3, s.FailedBatches)
			require.Equal(t, map[string]uint64{"read": 0, "write": 1}, s.Requests)
			require.Zero(t, s.Unfinished)
		})
	}
}

func TestTheStateOfConnectionsAndSessionsIsTold(t *testing.T) {
	target, e := newEngine(t), newEngine(t, tcptest.OneLane)
	memory, local := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	require.NoError(t, target.Register(tcptest.AddressOf(memory), 4096, "cpu:0", true))
	id := tcptest.OpenSegment(t, e, target.Name())
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, local[:100], id, memory[:100])))
	require.Equal(t, metrics.Connections{Idle: 1}, e.Stats().Initiator[0].Connections)
	require.EqualValues(t, 1, target.Stats().Sessions.Open)
	require.Positive(t, target.Stats().Sessions.Limit)

	require.NoError(t, e.Close())
	require.Eventually(t, func() bool { return target.Stats().Sessions.Open == 0 }, tcptest.Patience, time.Millisecond)
	at := target.Stats().Target[0]
	require.Zero(t, at.Connections)
	require.EqualValues(t, 1, at.Write.Requests, "what an ended session has done stays counted")
	require.EqualValues(t, 100, total(at.Write))
}
