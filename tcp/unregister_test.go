package tcp

import (
	"bytes"
	"net"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zaptest"
)

// dialEngine connects to the data port of an engine, whose registry counts pins as the fake one does not.
func dialEngine(t testing.TB, e *core.Engine) *tcptest.Client {
	t.Helper()
	conn, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: e.Descriptor().DataPort})
	require.NoError(t, err)
	return tcptest.NewClient(t, conn)
}

func TestMemoryThatNoRequestUsesIsUnregisteredWithoutEndingSessions(t *testing.T) {
	e := newEngine(t)
	memory, other := tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20)
	for _, b := range [][]byte{memory, other} {
		require.NoError(t, e.Register(hostmem.AddressOf(b), uint64(len(b)), "cpu:0", true))
	}
	c := dialEngine(t, e)
	for range 100 {
		c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), tcptest.Pattern(100, 1)), tcptest.ReadV2(memory[:100]), tcptest.WriteV1(hostmem.AddressOf(other), tcptest.Pattern(5000, 2)),
			tcptest.ReadV1(memory[:7]), tcptest.ReadV2(other[:5000]), tcptest.WriteV2(hostmem.AddressOf(memory), tcptest.Pattern(1<<20, 1)))
		c.ExpectStatus(wire.StatusOK)
		c.ExpectStatus(wire.StatusOK)
		c.Expect(tcptest.Pattern(100, 1))
		c.Expect(tcptest.Pattern(7, 1))
		c.ExpectStatus(wire.StatusOK)
		c.Expect(tcptest.Pattern(5000, 2))
		c.ExpectStatus(wire.StatusOK)
	}
	require.NoError(t, e.Unregister(hostmem.AddressOf(memory)))
	c.Send(tcptest.ReadV2(other[:1]))
	c.ExpectStatus(wire.StatusOK)
	require.Equal(t, 1, transportOf(t, e).Links()[0].Connections)
}

func TestUnregisterEndsARequestThatDoesNotGetOn(t *testing.T) {
	tcptest.Waits(t, core.Waits{Grace: 10 * time.Millisecond})
	e := newEngine(t)
	memory := tcptest.Mapped(t, 1<<20)
	require.NoError(t, e.Register(hostmem.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
	c := dialEngine(t, e)
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), tcptest.Pattern(1<<20, 1))[:1<<19])
	require.Eventually(t, func() bool { return memory[1<<18] == tcptest.Pattern(1<<19, 1)[1<<18] }, tcptest.Patience, time.Millisecond)
	require.NoError(t, e.Unregister(hostmem.AddressOf(memory)))
	tcptest.Unmap(t, memory)
	c.ExpectReset()
}

func TestUnregisterOfDeviceMemoryWaitsForItsCopies(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(1, staging.Granule))
	memory := a.Memory(1 << 20)
	e, err := core.New(core.Options{Name: "127.0.0.1", Metadata: "P2PHANDSHAKE", Config: core.DefaultConfig(),
		Log: zaptest.NewLogger(t), Runtimes: []device.Runtime{a.Runtime()}})
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	_, err = e.Install("tcp", Open)
	require.NoError(t, err)
	require.NoError(t, e.Register(hostmem.AddressOf(memory), uint64(len(memory)), "npu:0", true))
	c := dialEngine(t, e)

	release := a.HoldCopies()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), tcptest.Pattern(1<<20, 1)))
	a.WaitForACopy()
	unregistered := make(chan error, 1)
	go func() { unregistered <- e.Unregister(hostmem.AddressOf(memory)) }()
	require.Eventually(t, func() bool {
		region, err := e.Memory().PinRemote(uint64(hostmem.AddressOf(memory)), 1, core.Read)
		if err == nil {
			region.Unpin()
		}
		return err != nil
	}, tcptest.Patience, time.Millisecond)
	c.ExpectSilence()
	require.Empty(t, unregistered)
	release()
	require.NoError(t, <-unregistered)
	c.ExpectStatus(wire.StatusOK)
	require.True(t, bytes.Equal(tcptest.Pattern(1<<20, 1), memory))
}
