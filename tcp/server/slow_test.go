package server

import (
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

// trickle sends bytes one by one until they are sent, the connection ends or the test does.
func trickle(t *testing.T, c *tcptest.Client, bytes []byte) {
	pace := time.NewTicker(5 * time.Millisecond)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := range bytes {
			select {
			case <-pace.C:
			case <-t.Context().Done():
				return
			}
			if _, err := c.Conn.Write(bytes[i : i+1]); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		<-ended
		pace.Stop()
	})
}

// startSlowWrite has a connection hold staging memory, for a WRITE whose payload comes byte by byte.
func startSlowWrite(t *testing.T, h *harness, at uintptr, length int) *tcptest.Client {
	c := h.dial()
	c.Send(tcptest.Request(core.Write, true, at, uint64(length)))
	trickle(t, c, make([]byte, length))
	return c
}

// waitForWanted returns when so many sessions hold staging memory that others wait for.
func (h *harness) waitForWanted(n int) {
	h.t.Helper()
	require.Eventually(h.t, func() bool {
		h.server.mu.Lock()
		defer h.server.mu.Unlock()
		wanted := 0
		for s := range h.server.sessions {
			if s.holdsWanted() {
				wanted++
			}
		}
		return wanted == n
	}, tcptest.Patience, time.Millisecond)
}

func TestPeersThatTrickleDoNotKeepStagingMemoryFromOthers(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(2, 512<<10))
	memory := a.Memory(4 << 20)
	h := serveDevice(a, Options{ProgressTimeout: 2 * time.Second, StagingRate: 16 << 10}, memory)
	var slow []*tcptest.Client
	for range 3 {
		slow = append(slow, startSlowWrite(t, h, hostmem.AddressOf(memory), 1<<20))
	}
	h.waitForWanted(2) // the third one waits for their memory
	honest := h.dial()
	for range 2 {
		honest.Send(tcptest.WriteV2(hostmem.AddressOf(memory)+(2<<20), tcptest.Pattern(1<<20, 1)))
		honest.ExpectStatus(wire.StatusOK)
	}
	require.Contains(t, h.waitForLog("data connection lost").ContextMap()["error"], "KVFERRY_STAGING_MIN_RATE")
	_, err := slow[0].Conn.Read(make([]byte, 1))
	require.Error(t, err)
}

func TestAPeerMayBeSlowWhileNobodyElseWantsItsStagingMemory(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(2, 512<<10))
	memory := a.Memory(4096)
	h := serveDevice(a, Options{ProgressTimeout: 400 * time.Millisecond, StagingRate: 1 << 30}, memory)
	c := startSlowWrite(t, h, hostmem.AddressOf(memory), 100)
	c.ExpectStatus(wire.StatusOK)
}
