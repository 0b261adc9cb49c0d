package driver_test

import (
	"fmt"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// A copy that does not end is given up, and the device makes it later. So nothing that is written to the same memory until then is
// reported as done: it would be overwritten.
func TestACopyThatWasGivenUpOverwritesNothingThatWasAcknowledged(t *testing.T) {
	const length = 64 * kib
	impatient := func(c *core.Config) { c.ProgressTimeout = 200 * time.Millisecond }
	spans := []span{{0, 4096}, {8 * kib, 4096}, {16 * kib, 300}} // a target copies them together
	onAll(t, func(t *testing.T, k *kind) {
		for name, places := range map[string]func(*testing.T, *accelerator) (n *node, op core.Opcode, segment core.SegmentID, local, remote *memory){
			"at a target": func(t *testing.T, app *accelerator) (*node, core.Opcode, core.SegmentID, *memory, *memory) {
				target, n := startNode(t, impatient), startNode(t, nil)
				return n, core.Write, n.opens(target.Name()), n.onHost(length), target.on(app, length)
			},
			"at an initiator": func(t *testing.T, app *accelerator) (*node, core.Opcode, core.SegmentID, *memory, *memory) {
				target, n := startNode(t, nil), startNode(t, impatient)
				return n, core.Read, n.opens(target.Name()), n.on(app, length), target.onHost(length)
			},
			"within an engine": func(t *testing.T, app *accelerator) (*node, core.Opcode, core.SegmentID, *memory, *memory) {
				n := newNode(t, impatient, simtest.Runtime(t))
				return n, core.Write, core.LocalSegment, n.onHost(length), n.on(app, length)
			},
			"within a device": func(t *testing.T, app *accelerator) (*node, core.Opcode, core.SegmentID, *memory, *memory) {
				n := newNode(t, impatient, simtest.Runtime(t))
				return n, core.Read, core.LocalSegment, n.on(app, length), n.on(app, length)
			},
		} {
			t.Run(name, func(t *testing.T) {
				simtest.NoLeaks(t)
				n, op, segment, local, remote := places(t, newDevice(t, 0))
				to, from := ways[op](local, remote)
				move := func(spans ...span) []core.State {
					b := n.submit(requests(op, local, segment, remote, spans...)...)
					n.wait(b)
					defer func() { require.NoError(t, n.FreeBatch(b)) }()
					return n.states(b)
				}
				simtest.Faults(t, "exec:1=hang")
				require.Contains(t, move(spans...), core.Failed)
				from.write(noise(length))
				require.Equal(t, []core.State{core.Failed}, move(spans[0]))

				elsewhere := span{32 * kib, 4096}
				want := moved(to, from, elsewhere)
				require.Equal(t, []core.State{core.Completed}, move(elsewhere))
				simtest.ReleaseHangs(t)
				eventually(t, func() bool {
					for i, state := range move(spans...) {
						if state != core.Completed {
							return false
						}
						want = moved(to, from, spans[:i+1]...)
					}
					return true
				}, "it is written when the copy has ended")
				requireBytes(t, want, to)
			})
		}
	})
}

// Such memory cannot be taken back, until the copy has ended.
func TestMemoryThatACopyMayStillWriteIsInUse(t *testing.T) {
	const length = 64 * kib
	onAll(t, func(t *testing.T, k *kind) {
		for op := range ways {
			for _, within := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v, within a device: %v", op, within), func(t *testing.T) {
					simtest.NoLeaks(t)
					n := newNodeWith(t, func(o *core.Options) {
						o.Config.ProgressTimeout = 200 * time.Millisecond
						o.Waits = core.Waits{Grace: time.Millisecond, Ending: time.Millisecond}
					}, simtest.Runtime(t))
					app := newDevice(t, 0)
					local, remote := n.on(app, length), n.on(app, length)
					to, from := ways[op](local, remote)
					if !within {
						host := n.onHost(length)
						if from == local {
							local, from = host, host
						} else {
							remote, from = host, host
						}
					}
					other := n.on(app, length)
					simtest.Faults(t, "exec:1=hang")
					b := n.submit(requests(op, local, core.LocalSegment, remote, span{0, 4096}, span{8 * kib, 100})...)
					n.wait(b)
					require.ErrorContains(t, b.Err(), "a copy may still be under way")
					require.NoError(t, n.FreeBatch(b))

					err := n.Unregister(to.addr)
					require.ErrorIs(t, err, core.ErrInUse)
					require.ErrorContains(t, err, "that was given up and does not end")
					require.ErrorContains(t, n.Register(to.addr, length, "*", true), "still in use")
					require.NoError(t, n.Unregister(other.addr))
					require.NoError(t, n.Unregister(from.addr))
					simtest.ReleaseHangs(t)
					eventually(t, func() bool { return n.Unregister(to.addr) == nil }, "the copy has ended")
					app.Free(to.addr)
					_ = n.closes() // which may go on when it has returned
					eventually(t, func() bool {
						left := simtest.TakeReport(t).Leaked
						return left.Streams+left.Events+left.HostAllocations == 0 && left.DeviceSets == 1
					}, "closing goes on")
				})
			}
		}
	})
}

// Tasks that are copied together are copied one by one where the device refuses a copy. It does not finish the first of these copies:
// the others are not tried, since each might take as long.
func TestCopiesOneByOneEndWithTheFirstThatHangs(t *testing.T) {
	const length = 64 * kib
	spans := []span{{0, 4096}, {8 * kib, 4096}, {16 * kib, 4096}, {24 * kib, 4096}}
	impatient := func(c *core.Config) { c.ProgressTimeout = 200 * time.Millisecond }
	onAll(t, func(t *testing.T, k *kind) {
		refused := "aclrtMemcpyAsync:1"
		if k == gpus {
			refused = "cuMemcpyDtoHAsync_v2:1,cuMemcpyHtoDAsync_v2:1,cuMemcpyDtoDAsync_v2:1"
		}
		for op := range ways {
			for _, within := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v, within a device: %v", op, within), func(t *testing.T) {
					simtest.NoLeaks(t)
					p, app := startPair(t, impatient), newDevice(t, 0)
					n, segment := p.initiator, p.segment
					local, remote := n.on(app, length), p.target.onHost(length)
					if within {
						segment, remote = core.LocalSegment, n.on(app, length)
					}
					simtest.Faults(t, k.noBatches+","+refused+",exec:1=hang,exec:2=hang,exec:3=hang,exec:4=hang")
					b := n.submit(requests(op, local, segment, remote, spans...)...)
					n.wait(b)
					for i, state := range n.states(b) {
						require.Equal(t, core.Failed, state, "task %d", i)
					}
					logged := n.logs.FilterMessage("a staging job failed")
					require.Equal(t, 2, logged.Len(), "%v", logged.All())
					simtest.ReleaseHangs(t)
					_ = n.closes() // which may go on when it has returned
					eventually(t, func() bool { return simtest.TakeReport(t).Leaked.Streams == 0 }, "closing goes on")
				})
			}
		}
	})
}
