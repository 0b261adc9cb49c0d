package client

import (
	"sync"
	"testing"

	"kvferry/core"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// More engines than the target has sessions transfer all the time, so that the target ends idle connections just as their next
// transfers begin.
func TestNoTransferFailsWhileIdleConnectionsGiveWay(t *testing.T) {
	const engines, rounds, length = 5, 500, 4096
	for name, change := range map[string]func(*core.Config){"tcp": func(*core.Config) {}, "one host": tcptest.OnOneHost} {
		t.Run(name, func(t *testing.T) {
			target := newEngine(t, change, func(c *core.Config) { c.MaxSessions = 2 })
			memory := tcptest.Mapped(t, engines*length)
			require.NoError(t, target.Register(sockio.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
			var all sync.WaitGroup
			for i := range engines {
				e := newEngine(t, change)
				local, back := tcptest.Mapped(t, length), tcptest.Mapped(t, length)
				for _, b := range [][]byte{local, back} {
					require.NoError(t, e.Register(sockio.AddressOf(b), length, "cpu:0", true))
				}
				id := tcptest.OpenSegment(t, e, target.Name())
				remote := memory[i*length:][:length]
				all.Go(func() {
					for round := range rounds {
						tcptest.Fill(local, byte(engines*round+i))
						tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, local, id, remote)))
						tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, back, id, remote)))
						if !assert.Equal(t, local, back) {
							return
						}
					}
				})
			}
			all.Wait()
		})
	}
}
