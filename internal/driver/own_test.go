package driver_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/layout"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// These tests are of copies between devices within an engine's own segment: bytes pass through the host only where a device has no
// access to the other's memory, or the copy cannot be made within a device.

// places are a device that copies, and where the other end is.
type places struct {
	name  string
	other int  // index of the other device
	apart bool // without access
}

var allPlaces = []places{{"the same device", 1, false}, {"another device", 0, false}, {"another device without access", 0, true}}

// onPlaces runs a test for each kind of devices and each pair of them: memory of device 1 is local, and the other remote.
func onPlaces(t *testing.T, test func(t *testing.T, k *kind, p places, apps [2]*accelerator)) {
	onAll(t, func(t *testing.T, k *kind) {
		for _, p := range allPlaces {
			t.Run(p.name, func(t *testing.T) {
				simtest.NoLeaks(t)
				if p.apart {
					simtest.NoPeers(t)
				}
				apps := [2]*accelerator{newDevice(t, 1)}
				apps[1] = apps[0]
				if p.other != 1 {
					apps[1] = newDevice(t, p.other)
				}
				test(t, k, p, apps)
			})
		}
	})
}

// traffic is how many bytes were copied since the counters were reset, and how many of them between host and device.
func traffic(t *testing.T) (direct, host uint64) {
	bytes := simtest.TakeReport(t).CopiedBytes
	return bytes["d2d"], bytes["d2h"] + bytes["h2d"]
}

// aligned are blocks of the lengths, in turn, at multiples of 64 bytes.
func aligned(within int, lengths ...int) []span {
	var spans []span
	for at, i := 0, 0; at+lengths[i%len(lengths)] <= within; i++ {
		spans = append(spans, span{at, lengths[i%len(lengths)]})
		at = (at+lengths[i%len(lengths)])/64*64 + 128
	}
	return spans
}

// own moves the blocks within the engine's own segment, and compares all memory of the destination. It returns how many bytes were
// copied from device to device, and how many between host and device.
func (n *node) own(op core.Opcode, local, remote *memory, spans ...span) (direct, host uint64) {
	n.t.Helper()
	to, from := ways[op](local, remote)
	want := moved(to, from, spans...)
	simtest.ResetCounters(n.t)
	b := n.submit(requests(op, local, core.LocalSegment, remote, spans...)...)
	n.wait(b)
	require.NoError(n.t, b.Err())
	bytes := simtest.TakeReport(n.t).CopiedBytes
	requireBytes(n.t, want, to)
	return bytes["d2d"], bytes["d2h"] + bytes["h2d"]
}

// ownHangs submits a transfer within the engine, and returns when its first copy hangs.
func (n *node) ownHangs(op core.Opcode, local, remote *memory, s span) *core.Batch {
	n.t.Helper()
	simtest.ResetCounters(n.t)
	simtest.Faults(n.t, "exec:1=hang")
	b := n.submit(requests(op, local, core.LocalSegment, remote, s)...)
	eventually(n.t, func() bool { return simtest.TakeReport(n.t).Faults > 0 }, "the device hangs")
	return b
}

func sum(spans []span) (bytes uint64) {
	for _, s := range spans {
		bytes += uint64(s.length)
	}
	return bytes
}

func TestOwnSegmentCopiesGoFromDeviceToDevice(t *testing.T) {
	const length = 2 * mib
	onPlaces(t, func(t *testing.T, k *kind, p places, apps [2]*accelerator) {
		n := newNode(t, small, simtest.Runtime(t))
		local, remote := n.on(apps[0], length), n.on(apps[1], length)
		for seed := range uint64(2) {
			simtest.Seed(t, seed)
			for op := range ways {
				for _, spans := range [][]span{
					{{0, 64}}, {{64, length - 64}}, aligned(length/16, 4096), aligned(length, 64, 300, 170*kib, 1),
				} {
					local.write(noise(length))
					direct, host := n.own(op, local, remote, spans...)
					if p.apart {
						require.Zero(t, direct)
						require.Equal(t, 2*sum(spans), host)
					} else {
						require.Equal(t, sum(spans), direct)
						require.Zero(t, host, "bytes that passed through the host")
					}
				}
				// Blocks that are not aligned, which an NPU does not copy within itself.
				spans := scattered(length/4, 4096, 1000, 33*kib)
				if direct, host := n.own(op, local, remote, spans...); k == gpus && !p.apart {
					require.Zero(t, host)
					require.Equal(t, sum(spans), direct)
				}
			}
		}
		said := n.logs.FilterMessage("copies between these devices pass through the host").Len()
		if p.apart {
			require.Equal(t, 1, said/2+said%2, "once for each direction: %d", said)
		} else {
			require.Zero(t, said)
		}
	})
}

// A GPU makes many short copies with few calls.
func TestOwnSegmentCopiesOfManyShortBlocksAreMadeByAKernel(t *testing.T) {
	gpus.use(t, "")
	simtest.NoLeaks(t)
	app := newDevice(t, 0)
	n := newNode(t, nil, simtest.Runtime(t))
	local, remote := n.on(app, mib), n.on(app, mib)
	spans := aligned(mib, 512)
	for op := range ways {
		n.own(op, local, remote, spans...)
		calls := simtest.TakeReport(t).Calls
		require.EqualValues(t, (len(spans)+169)/170, calls["cuLaunchKernel"])
		require.Zero(t, calls["cuMemcpyDtoDAsync_v2"])
	}
}

// An application frees all memory of a device, and leaves the device to itself. That ends the access of others to it.
func TestOwnSegmentCopiesGoFromADeviceThatWasResetAndSetAgain(t *testing.T) {
	const length = 40 * mib // two steps
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		n := newNode(t, small, simtest.Runtime(t))
		local := n.on(newDevice(t, 0), length)
		for _, spans := range [][]span{{{0, 4096}, {8192, 4096}}, {{0, 4096}}, {{0, length}}, {{0, 64}, {64 * kib, 4096}}} {
			t.Run(fmt.Sprint(spans), func(t *testing.T) {
				remote := n.on(newDevice(t, 1), length)
				direct, host := n.own(core.Read, local, remote, spans...)
				require.Equal(t, sum(spans), direct)
				require.Zero(t, host)
				require.NoError(t, n.Unregister(remote.addr))
				simtest.ResetCounters(t) // the copy that was refused is intended
			})
		}
	})
}

// Older releases have no batches.
func TestOwnSegmentCopiesWithOlderReleases(t *testing.T) {
	for _, k := range []*kind{npus, gpus} {
		t.Run(k.name, func(t *testing.T) {
			k.use(t, k.older)
			simtest.NoLeaks(t)
			apps := [2]*accelerator{newDevice(t, 0), newDevice(t, 1)}
			n := newNode(t, nil, simtest.Runtime(t))
			local := n.on(apps[0], mib)
			for _, app := range apps {
				remote := n.on(app, mib)
				for op := range ways {
					direct, host := n.own(op, local, remote, aligned(mib, 70*kib, 4096)...)
					require.Zero(t, host)
					require.NotZero(t, direct)
				}
			}
		})
	}
}

// Whatever the order in which a device makes copies, tasks see what those before them have written, and ranges that overlap are
// copied as if over a buffer.
func TestOwnSegmentCopiesWithinADeviceThatOverlapAreMadeInTheirOrder(t *testing.T) {
	const length, block = mib, 4 * kib
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		app := newDevice(t, 0)
		n := newNode(t, small, simtest.Runtime(t))
		m := n.on(app, length)
		request := func(op core.Opcode, to, from, length int) core.Request {
			r := core.Request{Opcode: op, Local: m.addr + uintptr(from), Remote: uint64(m.addr) + uint64(to), Length: uint64(length)}
			if op == core.Read {
				r.Local, r.Remote = m.addr+uintptr(to), uint64(m.addr)+uint64(from)
			}
			return r
		}
		for seed := range uint64(4) {
			simtest.Seed(t, seed)
			for op := range ways {
				for name, moves := range map[string][][3]int{ // to, from, length
					"a chain":             {{block, 0, block}, {2 * block, block, block}, {9 * block, 2 * block, block}},
					"a swap":              {{8 * block, 0, block}, {0, block, block}, {block, 8 * block, block}},
					"the same place":      {{block, 0, block}, {block, 4 * block, block}, {block, 6 * block, block}},
					"upwards":             {{block / 2, 0, 50 * block}},
					"downwards":           {{0, block / 2, 50 * block}},
					"onto itself":         {{0, 0, 50 * block}},
					"among others":        {{20 * block, 0, block}, {64, 0, 3 * block}, {30 * block, block, block}},
					"short ones, in line": {{64, 0, 64}, {128, 64, 64}, {192, 128, 64}, {256, 192, 64}},
				} {
					m.write(noise(length))
					want := m.read()
					var reqs []core.Request
					for _, c := range moves {
						reqs = append(reqs, request(op, c[0], c[1], c[2]))
						copy(want[c[0]:c[0]+c[2]], append([]byte(nil), want[c[1]:c[1]+c[2]]...))
					}
					b := n.submit(reqs...)
					n.wait(b)
					require.NoError(t, b.Err(), name)
					require.NoError(t, n.FreeBatch(b))
					require.Equal(t, want, m.read(), "%s, %v", name, op)
				}
			}
		}
	})
}

// The plans of layouts on both sides.
func TestOwnSegmentCopiesOfPlansGoFromDeviceToDevice(t *testing.T) {
	const length = 512 * kib
	onPlaces(t, func(t *testing.T, k *kind, p places, apps [2]*accelerator) {
		n := newNode(t, small, simtest.Runtime(t))
		local, remote := n.on(apps[0], length), n.on(apps[1], length)
		simtest.Seed(t, 7)
		for op := range ways {
			to, from := ways[op](local, remote)
			transfer := headsApart(t, uint64(from.addr), uint64(to.addr), nil)
			local.write(noise(length))
			want, source := to.read(), from.read()
			runs, portion := transfer.Each(), make([]layout.Run, 64)
			for some := runs.Next(portion); some > 0; some = runs.Next(portion) {
				for _, r := range portion[:some] {
					copy(want[r.Destination-uint64(to.addr):][:r.Bytes], source[r.Source-uint64(from.addr):])
				}
			}
			simtest.ResetCounters(t)
			b, err := n.SubmitPlanned(core.Planned{Opcode: op, Target: core.LocalSegment, Transfer: transfer}, 0)
			require.NoError(t, err)
			n.wait(b)
			require.NoError(t, b.Err())
			require.NoError(t, n.FreeBatch(b))
			direct, host := traffic(t)
			calls := simtest.TakeReport(t).Calls
			requireBytes(t, want, to)
			if p.apart {
				require.Zero(t, direct)
			} else {
				require.Zero(t, host)
				require.Equal(t, transfer.Bytes, direct)
			}
			if k == gpus && p.other == 1 {
				require.Equal(t, (transfer.Runs+169)/170, calls["cuLaunchKernel"])
			}
		}
	})
}

// headsApart is a transfer from a cache of blocks of 64 tokens with the heads first to one of blocks of 16 with the tokens first.
// offer, if there is one, offers the destination.
func headsApart(t *testing.T, source, destination uint64, offer func(layout.Place) layout.Place) *layout.Transfer {
	t.Helper()
	const heads, dim, blocks = 4, 128, 4
	cache := func(at, tokens uint64, s layout.Strides) *layout.Layout {
		return &layout.Layout{ElementSize: 1, Blocks: blocks * 64 / tokens, BlockTokens: tokens, Layers: 1, KV: 1, Dim: dim,
			HeadsOf: heads, Heads: layout.Span{Count: heads},
			Tensors: []layout.Tensor{{Addresses: []uint64{at}, KV: layout.Span{Count: 1}, Dims: layout.Span{Count: dim}, Strides: s}}}
	}
	hnd := cache(source, 64, layout.Strides{Block: 64 * heads * dim, Token: dim, Head: 64 * dim, Dim: 1})
	nhd := cache(destination, 16, layout.Strides{Block: 16 * heads * dim, Token: heads * dim, Head: dim, Dim: 1})
	request := layout.Request{
		Sources:      []layout.Place{{Layout: hnd, Blocks: []uint64{2, 0}}},
		Destinations: []layout.Place{{Layout: nhd, Blocks: []uint64{7, 2, 3, 10, 11, 12, 9, 8}}}, Tokens: 100,
	}
	if offer != nil {
		request.Destinations[0] = offer(request.Destinations[0])
	}
	plan, err := request.NewPlan()
	require.NoError(t, err)
	return plan.Transfers[0]
}

// A copy that an offer allows is under way: the offer is taken back when it has ended, and no byte lands after that.
func TestOwnSegmentCopiesHoldTheOffersThatTheyUse(t *testing.T) {
	onPlaces(t, func(t *testing.T, k *kind, p places, apps [2]*accelerator) {
		n := newNode(t, small, simtest.Runtime(t))
		local, remote := n.on(apps[0], 512*kib), n.on(apps[1], 512*kib)
		var offer *core.Offer
		transfer := headsApart(t, uint64(local.addr), uint64(remote.addr), func(place layout.Place) layout.Place {
			made, err := n.Offer(place, core.OfferOptions{Access: core.RemoteWrite})
			require.NoError(t, err)
			there, err := layout.ParseOffer(made.Text())
			require.NoError(t, err)
			offer = made
			return there.Place
		})
		planned := core.Planned{Opcode: core.Write, Target: core.LocalSegment, Transfer: transfer}
		simtest.Faults(t, "exec:1=hang")
		b, err := n.SubmitPlanned(planned, 0)
		require.NoError(t, err)
		eventually(t, func() bool { return simtest.TakeReport(t).Faults > 0 }, "the device hangs")
		revoked := make(chan error, 1)
		go func() { revoked <- offer.Revoke() }()
		simtest.ReleaseHangs(t)
		require.NoError(t, <-revoked)
		after := remote.read()
		n.wait(b)
		require.NoError(t, n.FreeBatch(b))
		requireBytes(t, after, remote)

		b, err = n.SubmitPlanned(planned, 0)
		require.NoError(t, err)
		n.wait(b)
		require.ErrorIs(t, b.Err(), core.ErrRevoked)
		require.NoError(t, n.FreeBatch(b))
		requireBytes(t, after, remote)
	})
}

// driverCalls are the functions that a run has called, of those that the engine calls for direct copies.
func driverCalls(k *kind) []string {
	if k == npus {
		return strings.Fields("aclrtDeviceCanAccessPeer aclrtDeviceEnablePeerAccess aclrtMemcpyAsync aclrtCreateStream aclrtCreateEvent" +
			" aclrtRecordEvent aclrtSynchronizeEventWithTimeout aclrtSetDevice exec")
	}
	return strings.Fields("cuDeviceCanAccessPeer cuCtxEnablePeerAccess cuMemcpyPeerAsync cuMemcpyDtoDAsync_v2 cuMemcpyBatchAsync_v2" +
		" cuLaunchKernel cuModuleLoadData cuModuleGetFunction cuStreamCreateWithPriority cuEventCreate cuEventRecord cuEventQuery cuDeviceGet" +
		" cuDevicePrimaryCtxRetain cuCtxPushCurrent_v2 cuPointerGetAttributes exec")
}

// Each call fails in turn: the tasks end, and those that completed have moved every byte. Afterwards a new engine works.
func TestOwnSegmentCopiesUnderFaults(t *testing.T) {
	const length = 256 * kib
	onPlaces(t, func(t *testing.T, k *kind, p places, apps [2]*accelerator) {
		for i, function := range driverCalls(k) {
			for j, which := range []string{"1", "2+"} {
				op := core.Opcode((i + j) % 2)
				t.Run(fmt.Sprintf("%s:%s %v", function, which, op), func(t *testing.T) {
					n := newNode(t, small, simtest.Runtime(t))
					local, remote := n.on(apps[0], length), n.on(apps[1], length)
					to, from := ways[op](local, remote)
					spans := append(aligned(length/2, 4096, 128), span{length / 2, length / 2})
					source, other := from.read(), to.read()
					simtest.Faults(t, function+":"+which)
					b := n.submit(requests(op, local, core.LocalSegment, remote, spans...)...)
					n.wait(b)
					states, err := n.states(b), b.Err()
					_ = n.closes()
					simtest.Faults(t, "")
					got := to.read()
					for i, s := range spans {
						if states[i] == core.Completed {
							require.Equal(t, source[s.at:][:s.length], got[s.at:][:s.length], "task %d", i)
						} else {
							require.ErrorContains(t, err, k.name+":")
						}
						copy(other[s.at:][:s.length], got[s.at:])
					}
					require.Equal(t, other, got, "no other byte has changed")
					if strings.Contains(function, "Peer") {
						require.NoError(t, err, "what the device refuses passes through the host")
					}
				})
			}
		}
	})
}

// Of a copy that is given up because it does not end, the bytes do not pass through the host as well: they might be overwritten
// later.
func TestOwnSegmentCopiesThatDoNotEndFailAndNameTheDevices(t *testing.T) {
	onPlaces(t, func(t *testing.T, k *kind, p places, apps [2]*accelerator) {
		for op := range ways {
			n := newNode(t, func(c *core.Config) { c.ProgressTimeout = 200 * time.Millisecond }, simtest.Runtime(t))
			local, remote := n.on(apps[0], mib), n.on(apps[1], mib)
			simtest.Faults(t, "exec:1=hang")
			b := n.submit(requests(op, local, core.LocalSegment, remote, span{0, mib})...)
			n.wait(b)
			require.ErrorContains(t, b.Err(), "a copy may still be under way")
			if !p.apart {
				require.ErrorContains(t, b.Err(), k.at("1"))
				require.ErrorContains(t, b.Err(), k.at(fmt.Sprint(p.other)))
			}
			simtest.ReleaseHangs(t)
			require.NoError(t, n.closes())
			simtest.Faults(t, "")
		}
	})
}

// While a device hangs, memory of both ends is in use, and an error names what has it. After the call has reported no byte moves.
func TestOwnSegmentCopiesOnADeviceThatHangs(t *testing.T) {
	onPlaces(t, func(t *testing.T, k *kind, p places, apps [2]*accelerator) {
		for op := range ways {
			hasty := func(o *core.Options) { o.Waits = core.Waits{Grace: time.Millisecond, Ending: time.Millisecond} }
			n := newNodeWith(t, hasty, simtest.Runtime(t))
			local, remote := n.on(apps[0], mib), n.on(apps[1], mib)
			b := n.ownHangs(op, local, remote, span{0, mib})
			for _, m := range []*memory{local, remote} {
				require.ErrorIs(t, n.Unregister(m.addr), core.ErrInUse)
			}
			require.False(t, b.Done())
			require.ErrorContains(t, n.closes(), "memory is still in use by a copy within this process")
			simtest.ReleaseHangs(t)
			n.wait(b)
			eventually(t, func() bool {
				left := simtest.TakeReport(t).Leaked
				return left.Streams+left.Events+left.HostAllocations == 0
			}, "closing goes on")
			simtest.Faults(t, "")
		}
	})
}

// A batch that is given up is noticed between two steps.
func TestOwnSegmentCopiesThatAreGivenUpEndAfterAStep(t *testing.T) {
	const length = 40 * mib // two steps
	onPlaces(t, func(t *testing.T, k *kind, p places, apps [2]*accelerator) {
		for op := range ways {
			n := newNode(t, nil, simtest.Runtime(t))
			local, remote := n.on(apps[0], length), n.on(apps[1], length)
			b := n.ownHangs(op, local, remote, span{0, length})
			n.CancelBatch(b)
			require.False(t, b.Done())
			simtest.ResetCounters(t)
			simtest.ReleaseHangs(t)
			n.wait(b)
			require.ErrorIs(t, b.Err(), core.ErrDiscarded)
			direct, host := traffic(t)
			require.Zero(t, direct, "no step begins after the batch was given up")
			require.LessOrEqual(t, host, uint64(4*mib), "the other half of a step")
			require.NoError(t, n.closes())
			simtest.Faults(t, "")
		}
	})
}

// What is queued behind a copy that takes long does not wait for it when it is given up.
func TestOwnSegmentCopiesThatAreGivenUpWhileTheyAreQueuedEndAtOnce(t *testing.T) {
	onPlaces(t, func(t *testing.T, k *kind, p places, apps [2]*accelerator) {
		for op := range ways {
			n := newNode(t, nil, simtest.Runtime(t))
			local, remote := n.on(apps[0], mib), n.on(apps[1], mib)
			first := n.ownHangs(op, local, remote, span{0, 4096})
			second, third := aligned(mib, 4096), span{0, 4096}
			queued := n.submit(requests(op, local, core.LocalSegment, remote, second...)...)
			last := n.submit(requests(op, local, core.LocalSegment, remote, third)...)
			n.CancelBatch(queued)
			n.wait(queued)
			require.ErrorIs(t, queued.Err(), core.ErrDiscarded)
			require.NotContains(t, n.states(queued), core.Completed)
			require.False(t, first.Done() || last.Done())
			simtest.ReleaseHangs(t)
			n.wait(first)
			n.wait(last)
			require.NoError(t, first.Err())
			require.NoError(t, last.Err())
			require.NoError(t, n.closes())
			simtest.Faults(t, "")
		}
	})
}

// Each step begins aligned, as an NPU wants it, where the end is not.
func TestOwnSegmentCopiesInStepsGoFromDeviceToDeviceWhateverTheirLength(t *testing.T) {
	const length = 32*mib + 64 + 1
	onPlaces(t, func(t *testing.T, k *kind, p places, apps [2]*accelerator) {
		n := newNode(t, nil, simtest.Runtime(t))
		local, remote := n.on(apps[0], length), n.on(apps[1], length)
		for op := range ways { // the destination lies above the source in one of them
			direct, host := n.own(op, local, remote, span{0, length})
			if p.apart {
				require.EqualValues(t, 2*length, host)
			} else {
				require.EqualValues(t, length, direct)
				require.Zero(t, host)
			}
		}
	})
}

// Devices of two libraries have no access to each other.
func TestOwnSegmentCopiesBetweenTwoLibrariesPassThroughTheHost(t *testing.T) {
	devices, runtimes := bothKinds(t)
	n := newNode(t, small, runtimes...)
	for _, pair := range [][2]int{{0, 2}, {2, 0}, {1, 3}} {
		local, remote := n.on(devices[pair[0]], mib), n.on(devices[pair[1]], mib)
		for op := range ways {
			spans := scattered(mib, 4096, 70*kib)
			to, from := ways[op](local, remote)
			want := moved(to, from, spans...)
			b := n.submit(requests(op, local, core.LocalSegment, remote, spans...)...)
			n.wait(b)
			require.NoError(t, b.Err())
			requireBytes(t, want, to)
		}
	}
	require.Zero(t, n.logs.FilterMessage("copies between these devices pass through the host").Len())
}

// Memory that the access to a peer does not open: mapped memory, as of PyTorch's expandable segments.
func TestOwnSegmentCopiesOfMappedMemoryOfAnotherGPUPassThroughTheHost(t *testing.T) {
	gpus.use(t, "")
	simtest.NoLeaks(t)
	zero, one := newDevice(t, 0), newDevice(t, 1)
	n := newNode(t, nil, simtest.Runtime(t))
	local := n.on(zero, 4*mib)
	mapped := n.register(&memory{addr: one.AllocVirtual(simtest.VirtualPiece, simtest.VirtualPiece), length: 4 * mib, on: one})
	for op := range ways {
		direct, host := n.own(op, local, mapped, span{mib, 2 * mib}, span{0, 4096})
		require.Zero(t, direct)
		require.NotZero(t, host)
	}
	plain := n.on(one, mib)
	direct, host := n.own(core.Write, local, plain, span{0, mib})
	require.EqualValues(t, mib, direct, "the devices are still no strangers to each other")
	require.Zero(t, host)
}
