package tcp

import (
	"bytes"
	"testing"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// Two engines, one of which lets peers read memory, or write it, or both, or neither.

var accesses = []struct {
	name string
	core.Access
}{{"none", core.NoAccess}, {"read", core.RemoteRead}, {"write", core.RemoteWrite}, {"both", core.FullAccess}}

// accessWays are all ways to a peer.
var accessWays = append(tcptest.Ways[:len(tcptest.Ways):len(tcptest.Ways)], struct {
	Name   string
	Config func(*core.Config)
}{"one host", tcptest.OnOneHost})

// accessLength is cut into several requests.
const accessLength = 128 << 10

func shortSlices(c *core.Config) { c.SliceSize = 32 << 10 }

// owner is an engine with memory, of an accelerator where there is one.
func owner(t *testing.T, a *tcptest.Accelerator, config func(*core.Config)) (e *core.Engine, memory []byte) {
	if a == nil {
		return newEngine(t, config), tcptest.Mapped(t, accessLength)
	}
	memory = a.Memory(accessLength)
	c := core.DefaultConfig()
	c.SameHost = false
	config(&c)
	e, err := core.New(core.Options{Name: "127.0.0.1", Metadata: "P2PHANDSHAKE", Config: c, Log: zap.NewNop(),
		Runtimes: []device.Runtime{a.Runtime()}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = e.Close() })
	_, err = e.Install("tcp", Open)
	require.NoError(t, err)
	return e, memory
}

func register(t *testing.T, e *core.Engine, b []byte, access core.Access) {
	t.Helper()
	require.NoError(t, e.RegisterFor([]core.Range{{Addr: hostmem.AddressOf(b), Length: uint64(len(b))}}, "", access))
}

func TestPeersDoWithMemoryWhatItsOwnerAllowsAndNothingElse(t *testing.T) {
	for _, way := range accessWays {
		for _, kind := range []string{"host memory", "device memory"} {
			for _, knows := range []bool{true, false} {
				for _, access := range accesses {
					name := way.Name + ", " + kind + ", " + access.name
					if !knows {
						name += ", with an old descriptor"
					}
					t.Run(name, func(t *testing.T) {
						var a *tcptest.Accelerator
						if kind == "device memory" {
							a = tcptest.Accelerate(t, tcptest.Blocks(4, staging.Granule))
						}
						checkAccess(t, a, way.Config, access.Access, knows)
					})
				}
			}
		}
	}
}

// checkAccess transfers in both directions. An initiator that does not know the access has used the memory before, when peers
// were allowed everything.
func checkAccess(t *testing.T, a *tcptest.Accelerator, way func(*core.Config), access core.Access, knows bool) {
	target, memory := owner(t, a, way)
	e := newEngine(t, way, shortSlices)
	local := tcptest.Mapped(t, accessLength)
	before := core.FullAccess
	if knows {
		before = access
	}
	register(t, target, memory, before)
	id := tcptest.OpenSegment(t, e, target.Name())
	if !knows {
		for range 2 { // the second time by a grant, if that can be had
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, id, memory)))
		}
		require.NoError(t, target.Unregister(hostmem.AddressOf(memory)))
		register(t, target, memory, access)
	}
	for range 2 {
		for _, op := range tcptest.Opcodes {
			tcptest.Fill(memory, 1)
			tcptest.Fill(local, 2)
			there, here := bytes.Clone(memory), bytes.Clone(local)
			b := tcptest.Submit(t, e, tcptest.Ask(op, local, id, memory))
			if access.Allows(op) {
				tcptest.Completes(t, b)
				require.True(t, bytes.Equal(memory, local), "%v", op)
				continue
			}
			tcptest.FailsOnly(t, b, 0)
			require.True(t, bytes.Equal(there, memory), "a %v that was refused has changed the target's memory", op)
			if knows || op == core.Write { // a READ may have copied by an old grant before it found out that this had ended
				require.True(t, bytes.Equal(here, local), "a %v that was refused has changed local memory", op)
			}
			require.ErrorContains(t, b.Err(), target.Name())
			if access == core.NoAccess {
				require.ErrorContains(t, b.Err(), "shows no buffer")
			} else {
				require.ErrorIs(t, b.Err(), core.ErrForbidden)
				require.ErrorContains(t, b.Err(), "rejected: its owner does not let peers "+op.Verb()+" it")
			}
		}
	}
}

// The other tasks of a batch go on: one that is refused ends its connection.
func TestATaskThatIsNotAllowedFailsAloneInItsBatch(t *testing.T) {
	const blocks, size = 64, 4096
	for _, way := range accessWays {
		for _, op := range tcptest.Opcodes {
			t.Run(way.Name+" "+op.String(), func(t *testing.T) {
				target, e := newEngine(t, way.Config), newEngine(t, way.Config)
				memory, local := tcptest.Mapped(t, blocks*size), tcptest.Mapped(t, blocks*size)
				tcptest.Fill(memory, 1)
				tcptest.Fill(local, 2)
				there, here := bytes.Clone(memory), bytes.Clone(local)
				allowed, other := core.RemoteWrite, core.RemoteRead
				if op == core.Read {
					allowed, other = other, allowed
				}
				var reqs []core.Request
				var failing []int
				for i := range blocks { // adjacent on both sides
					access := allowed
					if i%5 == 3 {
						access, failing = other, append(failing, i)
					}
					register(t, target, memory[i*size:(i+1)*size], access)
				}
				id := tcptest.OpenSegment(t, e, target.Name())
				for i := range blocks {
					reqs = append(reqs, tcptest.Ask(op, local[i*size:(i+1)*size], id, memory[i*size:(i+1)*size]))
				}
				b := tcptest.Submit(t, e, reqs...)
				tcptest.FailsOnly(t, b, failing...)
				require.ErrorIs(t, b.Err(), core.ErrForbidden)
				for i := range blocks {
					at, end := i*size, (i+1)*size
					if i%5 == 3 {
						require.True(t, bytes.Equal(there[at:end], memory[at:end]) && bytes.Equal(here[at:end], local[at:end]), "block %d", i)
					} else {
						require.True(t, bytes.Equal(memory[at:end], local[at:end]), "block %d", i)
					}
				}
			})
		}
	}
}

func TestATransferAcrossRegionsOfDifferentAccessMovesNothing(t *testing.T) {
	for _, way := range accessWays {
		for _, op := range tcptest.Opcodes {
			t.Run(way.Name+" "+op.String(), func(t *testing.T) {
				target, e := newEngine(t, way.Config), newEngine(t, way.Config)
				memory, local := tcptest.Mapped(t, 8192), tcptest.Mapped(t, 8192)
				tcptest.Fill(memory, 1)
				there, here := bytes.Clone(memory), bytes.Clone(local)
				register(t, target, memory[:4096], core.FullAccess)
				register(t, target, memory[4096:], core.RemoteRead)
				id := tcptest.OpenSegment(t, e, target.Name())
				tcptest.FailsOnly(t, tcptest.Submit(t, e, tcptest.Ask(op, local, id, memory)), 0)
				require.True(t, bytes.Equal(there, memory) && bytes.Equal(here, local))
			})
		}
	}
}

// Local memory is bound by no flag.
func TestMemoryThatPeersMayNotTouchIsLocalMemoryOfTransfers(t *testing.T) {
	for _, way := range accessWays {
		t.Run(way.Name, func(t *testing.T) {
			target, e := newEngine(t, way.Config), newEngine(t, way.Config)
			memory, local := tcptest.Mapped(t, accessLength), tcptest.Mapped(t, accessLength)
			register(t, target, memory, core.FullAccess)
			register(t, e, local, core.NoAccess)
			id := tcptest.OpenSegment(t, e, target.Name())
			for _, op := range tcptest.Opcodes {
				tcptest.Fill(memory, 1)
				tcptest.Fill(local, 2)
				tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(op, local, id, memory)))
				require.True(t, bytes.Equal(memory, local))
			}
		})
	}
}
