package client

import (
	"bytes"
	"sync"
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// More engines than the target has sessions transfer all the time, so that the target ends idle connections just as their next
// transfers begin.
func TestNoTransferFailsWhileIdleConnectionsGiveWay(t *testing.T) {
	const engines = 5
	lanes := func(c *core.Config) { c.LanesPerPeer, c.LanesPerLink, c.SliceSize = 4, 4, 64<<10 }
	for name, way := range map[string]struct {
		change                   func(*core.Config)
		sessions, rounds, length int
	}{
		"tcp":      {func(*core.Config) {}, 2, 500, 4096},
		"lanes":    {lanes, 6, 5, 4 << 20},
		"one host": {tcptest.OnOneHost, 2, 500, 4096},
	} {
		t.Run(name, func(t *testing.T) {
			change, rounds, length := way.change, way.rounds, way.length
			target := newEngine(t, change, func(c *core.Config) { c.MaxSessions = way.sessions })
			memory := tcptest.Mapped(t, engines*length)
			require.NoError(t, target.Register(hostmem.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
			var all sync.WaitGroup
			for i := range engines {
				e := newEngine(t, change)
				local, back := tcptest.Mapped(t, length), tcptest.Mapped(t, length)
				for _, b := range [][]byte{local, back} {
					require.NoError(t, e.Register(hostmem.AddressOf(b), uint64(length), "cpu:0", true))
				}
				id := tcptest.OpenSegment(t, e, target.Name())
				remote := memory[i*length:][:length]
				all.Go(func() {
					for round := range rounds {
						tcptest.Fill(local, byte(engines*round+i))
						tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, local, id, remote)))
						tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, back, id, remote)))
						if !assert.True(t, bytes.Equal(local, back)) {
							return
						}
					}
				})
			}
			all.Wait()
		})
	}
}
