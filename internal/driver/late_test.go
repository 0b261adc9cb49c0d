package driver_test

import (
	"fmt"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/layout"
	"kvferry/core/status"
	"kvferry/internal/driver/drivertest"
	"kvferry/tcp"
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

// impatientNode is a node that gives up copies soon, and waits for nothing else. With a transport it serves peers. On a busy machine,
// other copies need some of the time.
func impatientNode(t *testing.T, transport bool) *node {
	t.Helper()
	n := newNodeWith(t, func(o *core.Options) {
		o.Config.ProgressTimeout = 500 * time.Millisecond
		o.Waits = core.Waits{Grace: time.Millisecond, Ending: time.Millisecond}
	}, simtest.Runtime(t))
	if transport {
		_, err := n.Install("tcp", tcp.Open)
		require.NoError(t, err)
	}
	return n
}

// closesLate closes the engine of a copy that was given up. The closing may go on when the call has returned.
func (n *node) closesLate(before simtest.Leaked) {
	n.t.Helper()
	_ = n.closes()
	eventually(n.t, func() bool {
		left := simtest.TakeReport(n.t).Leaked
		return left.Streams+left.Events+left.HostAllocations == 0 && left.DeviceSets == before.DeviceSets
	}, "closing goes on")
}

// lateCopy is a transfer of which a copy will be given up by an engine, the owner.
type lateCopy struct {
	n, owner      *node
	segment       core.SegmentID
	local, remote *memory
}

// lateCopies are made between memory of all kinds.
var lateCopies = map[string]func(t *testing.T, apps [2]*accelerator) lateCopy{
	"at a target": func(t *testing.T, apps [2]*accelerator) lateCopy {
		owner, n := impatientNode(t, true), startNode(t, nil)
		return lateCopy{n, owner, n.opens(owner.Name()), n.onHost(lateLength), owner.on(apps[0], lateLength)}
	},
	"at an initiator": func(t *testing.T, apps [2]*accelerator) lateCopy {
		n, target := impatientNode(t, true), startNode(t, nil)
		return lateCopy{n, n, n.opens(target.Name()), n.on(apps[0], lateLength), target.onHost(lateLength)}
	},
	"between a device and the host": func(t *testing.T, apps [2]*accelerator) lateCopy {
		n := impatientNode(t, false)
		return lateCopy{n, n, core.LocalSegment, n.on(apps[0], lateLength), n.onHost(lateLength)}
	},
	"between the host and a device": func(t *testing.T, apps [2]*accelerator) lateCopy {
		n := impatientNode(t, false)
		return lateCopy{n, n, core.LocalSegment, n.onHost(lateLength), n.on(apps[0], lateLength)}
	},
	"within a device": func(t *testing.T, apps [2]*accelerator) lateCopy {
		n := impatientNode(t, false)
		return lateCopy{n, n, core.LocalSegment, n.on(apps[0], lateLength), n.on(apps[0], lateLength)}
	},
	"between devices": func(t *testing.T, apps [2]*accelerator) lateCopy {
		n := impatientNode(t, false)
		return lateCopy{n, n, core.LocalSegment, n.on(apps[0], lateLength), n.on(apps[1], lateLength)}
	},
}

const (
	lateLength = 64 * kib
	mayRead    = "that was given up and does not end: it may still read the memory"
	mayWrite   = "that was given up and does not end: it may still write to the memory"
)

// lateBlocks are copied together: by a kernel, in a batch, or gathered, as the device does by default.
var lateBlocks = []span{{0, 4096}, {8 * kib, 100}, {12 * kib, 64}}

// onLateCopies runs a test for each kind of devices, each opcode, and each way of a copy that is given up.
func onLateCopies(t *testing.T, test func(t *testing.T, op core.Opcode, apps [2]*accelerator, c lateCopy)) {
	onAll(t, func(t *testing.T, k *kind) {
		for op := range ways {
			for name, place := range lateCopies {
				t.Run(fmt.Sprintf("%v, %s", op, name), func(t *testing.T) {
					simtest.NoLeaks(t)
					apps := [2]*accelerator{newDevice(t, 0), newDevice(t, 1)}
					test(t, op, apps, place(t, apps))
				})
			}
		}
	})
}

// gaveUp waits for a batch of which a copy was given up. It fails, unless a target has copied the blocks again, one by one.
func (c *lateCopy) gaveUp(b *core.Batch) {
	c.n.t.Helper()
	c.n.wait(b)
	require.Equal(c.n.t, 1, c.owner.logs.FilterMessage("the device is stuck: staging blocks are given up").Len())
	require.NoError(c.n.t, c.n.FreeBatch(b))
}

// end closes the engines.
func (c *lateCopy) end(before simtest.Leaked) {
	c.n.t.Helper()
	if c.n != c.owner {
		require.NoError(c.n.t, c.n.closes())
	}
	c.owner.closesLate(before)
}

// Memory that such a copy may still read or write cannot be taken back until the copy has ended: its owner would use it for something
// else, or free it.
func TestMemoryThatACopyMayStillUseIsInUse(t *testing.T) {
	onLateCopies(t, func(t *testing.T, op core.Opcode, apps [2]*accelerator, c lateCopy) {
		owner, before := c.owner, simtest.TakeReport(t).Leaked
		to, from := ways[op](c.local, c.remote)
		other, host := owner.on(apps[0], lateLength), owner.onHost(lateLength)
		simtest.Faults(t, "exec:1=hang")
		c.gaveUp(c.n.submit(requests(op, c.local, c.segment, c.remote, lateBlocks...)...))

		if from.on != nil { // what the copy reads now goes to where nothing is copied
			for op := range ways {
				owner.transfer(op, host, core.LocalSegment, from, lateBlocks...)
			}
		}
		for m, does := range map[*memory]string{to: mayWrite, from: mayRead} {
			if m.on == nil {
				continue
			}
			err := owner.Unregister(m.addr)
			require.ErrorIs(t, err, core.ErrInUse)
			require.ErrorContains(t, err, does)
			require.ErrorContains(t, owner.Register(m.addr, lateLength, "*", true), "still in use")
		}
		require.NoError(t, owner.Unregister(other.addr))
		require.NoError(t, owner.Unregister(host.addr))
		simtest.ReleaseHangs(t)
		for _, m := range []*memory{to, from} {
			if m.on != nil {
				eventually(t, func() bool { return owner.Unregister(m.addr) == nil }, "the copy has ended")
				m.on.Free(m.addr)
			}
		}
		c.end(before)
	})
}

// An offer of such memory is taken back when the copy has ended, also if it was made for something else.
func TestAnOfferOfMemoryThatACopyMayStillUseIsTakenBackWhenTheCopyHasEnded(t *testing.T) {
	const heads, dim, blocks = 4, 64, 16
	cache := func(at uintptr, numbers ...uint64) layout.Place {
		return layout.Place{Blocks: numbers, Layout: &layout.Layout{
			ElementSize: 1, Blocks: blocks, BlockTokens: 16, Layers: 1, KV: 1, Dim: dim, HeadsOf: heads, Heads: layout.Span{Count: heads},
			Tensors: []layout.Tensor{{Addresses: []uint64{uint64(at)}, KV: layout.Span{Count: 1}, Dims: layout.Span{Count: dim},
				Strides: layout.Strides{Block: 16 * heads * dim, Token: heads * dim, Head: dim, Dim: 1}}},
		}}
	}
	onLateCopies(t, func(t *testing.T, op core.Opcode, _ [2]*accelerator, c lateCopy) {
		if c.remote.on == nil {
			return
		}
		before := simtest.TakeReport(t).Leaked
		offer := func(numbers ...uint64) *core.Offer {
			made, err := c.owner.Offer(cache(c.remote.addr, numbers...), core.OfferOptions{Access: core.FullAccess})
			require.NoError(t, err)
			return made
		}
		used, beside := offer(3, 5), offer(2, 6)
		there, err := layout.ParseOffer(used.Text())
		require.NoError(t, err)
		request := layout.Request{Sources: []layout.Place{cache(c.local.addr, 1, 9)}, Destinations: []layout.Place{there.Place}, Tokens: 32}
		if op == core.Read {
			request.Sources, request.Destinations = request.Destinations, request.Sources
		}
		plan, err := request.NewPlan()
		require.NoError(t, err)
		simtest.Faults(t, "exec:1=hang")
		b, err := c.n.SubmitPlanned(core.Planned{Opcode: op, Target: c.segment, Transfer: plan.Transfers[0]}, 0)
		require.NoError(t, err)
		c.gaveUp(b)

		does := map[core.Opcode]string{core.Write: mayWrite, core.Read: mayRead}[op]
		again := offer(3)
		for _, o := range []*core.Offer{used, again} {
			err := o.Revoke()
			require.ErrorIs(t, err, core.ErrInUse)
			require.ErrorContains(t, err, "the offer was revoked, but its memory is still in use by a copy of ")
			require.ErrorContains(t, err, does)
		}
		require.NoError(t, beside.Revoke())
		simtest.ReleaseHangs(t)
		for _, o := range []*core.Offer{used, again} {
			eventually(t, func() bool { return o.Revoke() == nil }, "the copy has ended")
		}
		c.end(before)
	})
}

// An engine is closed while such a copy may still be made: the error says which memory must be left as it is.
func TestAnEngineThatIsClosedNamesTheMemoryThatACopyMayStillUse(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		if !drivertest.Fresh(t, false) { // the device keeps its stream and its blocks
			return
		}
		n := newNode(t, func(c *core.Config) { c.ProgressTimeout = 200 * time.Millisecond }, simtest.Runtime(t))
		app := newDevice(t, 0)
		c := lateCopy{n, n, core.LocalSegment, n.on(app, lateLength), n.on(app, lateLength)}
		simtest.Faults(t, "exec:1=hang")
		c.gaveUp(n.submit(requests(core.Write, c.local, c.segment, c.remote, span{0, 4096})...))
		err := n.closes()
		require.ErrorIs(t, err, core.ErrInUse)
		require.Equal(t, status.BatchBusy, status.Of(err, status.OK))
		for m, does := range map[*memory]string{c.local: mayRead, c.remote: mayWrite} {
			require.ErrorContains(t, err, fmt.Sprintf("%#x+%d by a copy of %s, direct, %s", m.addr, lateLength, app.location, does))
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
