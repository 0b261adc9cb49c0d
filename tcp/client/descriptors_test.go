package client

import (
	"sync"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestConnectionsToPeersTakeNoMoreDescriptorsThanTheyMay(t *testing.T) {
	const connections, peers, length = 2, 5, 4 << 20
	allowed := sockio.NewDescriptors(connections * connectionDescriptors)
	testDescriptors = allowed
	t.Cleanup(func() { testDescriptors = nil })
	e := newEngine(t)
	testDescriptors = nil
	local := tcptest.Mapped(t, peers*length)
	tcptest.Fill(local, 1)
	require.NoError(t, e.Register(hostmem.AddressOf(local), uint64(len(local)), "cpu:0", true))
	var ids []core.SegmentID
	var memory [][]byte
	for i := range peers {
		target := newEngine(t)
		memory = append(memory, tcptest.Mapped(t, length))
		require.NoError(t, target.Register(hostmem.AddressOf(memory[i]), length, "cpu:0", true))
		ids = append(ids, tcptest.OpenSegment(t, e, target.Name()))
	}
	write := func(i int) {
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, local[i*length:][:length], ids[i], memory[i])))
		assert.Equal(t, local[i*length:][:length], memory[i])
	}
	for i := range peers { // one after the other
		write(i)
	}
	var all sync.WaitGroup
	for i := range peers { // and all at once
		all.Go(func() { write(i) })
	}
	all.Wait()
	require.NoError(t, e.Close())
	require.True(t, allowed.Take(connections*connectionDescriptors), "all of them were given back")
}

func TestIdleLanesOfOneEngineLeaveDescriptorsForTheOthersOfTheProcess(t *testing.T) {
	allowed := sockio.NewDescriptors(connectionDescriptors)
	testDescriptors = allowed
	t.Cleanup(func() { testDescriptors = nil })
	engines := []*core.Engine{newEngine(t), newEngine(t), newEngine(t)}
	testDescriptors = nil
	target := newEngine(t)
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	require.NoError(t, target.Register(hostmem.AddressOf(far), 4096, "cpu:0", true))
	for round := range 3 {
		for _, e := range engines {
			tcptest.Fill(near, byte(round))
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, tcptest.OpenSegment(t, e, target.Name()), far)))
			require.Equal(t, near, far)
		}
	}
	for _, e := range engines {
		require.NoError(t, e.Close())
	}
	require.True(t, allowed.Take(connectionDescriptors), "all of them were given back")
}

func TestATransferFailsThatFindsNoDescriptors(t *testing.T) {
	testDescriptors = sockio.NewDescriptors(connectionDescriptors - 1)
	t.Cleanup(func() { testDescriptors = nil })
	e := newEngine(t, func(c *core.Config) { c.HandshakeConnectTimeout = 50 * time.Millisecond })
	target := newEngine(t)
	memory := tcptest.Mapped(t, 8192)
	for _, one := range []*core.Engine{e, target} {
		require.NoError(t, one.Register(hostmem.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
	}
	b := tcptest.Submit(t, e, tcptest.Ask(core.Write, memory[:4096], tcptest.OpenSegment(t, e, target.Name()), memory[4096:]))
	tcptest.FailsOnly(t, b, 0)
	require.ErrorIs(t, b.Err(), errNoDescriptors)
}
