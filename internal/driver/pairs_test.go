package driver_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// bothKinds are two simulated devices of each kind, and the runtimes of an engine that has them all.
func bothKinds(t *testing.T) (devices []*accelerator, runtimes []device.Runtime) {
	for _, k := range []*kind{npus, gpus} {
		k.use(t, "")
		simtest.NoLeaks(t)
		devices = append(devices, newDevice(t, 0), newDevice(t, 1))
		runtimes = append(runtimes, simtest.Runtime(t))
	}
	return devices, runtimes
}

// Each block of a batch goes from one kind of memory to another, with streams of both libraries that delay what they may.
func TestABatchMovesMemoryOfEveryKindToEveryOther(t *testing.T) {
	const length = 200 * kib
	devices, runtimes := bothKinds(t)
	p := startPair(t, small, runtimes...)
	for _, k := range []*kind{npus, gpus} {
		k.use(t, "")
		simtest.Seed(t, 1)
	}
	everywhere := func(n *node) []*memory {
		all := []*memory{n.onHost(length)}
		for _, d := range devices {
			all = append(all, n.on(d, length))
		}
		return all
	}
	for op, way := range ways {
		var reqs []core.Request
		var checks []func()
		for i := range len(devices) + 1 {
			locals, remotes := everywhere(p.initiator), everywhere(p.target)
			for j, local := range locals {
				remote := remotes[(i+j)%len(remotes)]
				spans := scattered(length, 4096, 1000+i, 70*kib)
				to, from := way(local, remote)
				want := moved(to, from, spans...)
				reqs = append(reqs, requests(op, local, p.segment, remote, spans...)...)
				checks = append(checks, func() { requireBytes(t, want, to) })
			}
		}
		b := p.initiator.submit(reqs...)
		p.initiator.wait(b)
		require.NoError(t, b.Err())
		for _, check := range checks {
			check()
		}
	}
}

// A device whose memory is registered, without transfers, gets no calls.
func TestNothingIsMadeOnADeviceBeforeItsMemoryIsMoved(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		app := newDevice(t, 1)
		p := startPair(t, nil)
		before := simtest.TakeReport(t)
		p.initiator.on(app, mib)
		remote := p.target.on(app, mib)
		p.initiator.transfer(core.Write, p.initiator.onHost(mib), p.segment, p.target.onHost(mib), span{0, mib})
		after := simtest.TakeReport(t)
		require.Equal(t, before.Devices, after.Devices)
		require.Zero(t, after.Leaked.Streams+after.Leaked.Events+after.Leaked.HostAllocations)

		p.initiator.transfer(core.Write, p.initiator.onHost(mib), p.segment, remote, span{0, mib})
		require.Zero(t, simtest.TakeReport(t).Devices[0].Sets)
		require.Greater(t, simtest.TakeReport(t).Devices[1].Sets, before.Devices[1].Sets)
	})
}

// What the application frees before it unregisters it fails its own transfers.
func TestMemoryThatWasFreedFailsItsTransfersOnly(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		app := newDevice(t, 0)
		p := startPair(t, nil)
		freed, kept, remote := p.initiator.on(app, mib), p.initiator.on(app, mib), p.target.onHost(mib)
		app.Free(freed.addr)
		for op := range ways {
			// Tasks of a batch share a staging block.
			to, from := ways[op](kept, remote)
			spans := scattered(mib/4, 4096, 300, 33*kib)
			reqs, want := requests(op, kept, p.segment, remote, spans...), to.read()
			for i, s := range spans {
				if i%5 == 1 {
					reqs[i].Local = freed.addr
				} else {
					copy(want[s.at:s.at+s.length], from.read()[s.at:])
				}
			}
			mixed := p.initiator.submit(reqs...)
			p.initiator.wait(mixed)
			for i, state := range p.initiator.states(mixed) {
				require.Equal(t, i%5 == 1, state == core.Failed, "task %d: %v", i, mixed.Err())
			}
			requireBytes(t, want, to)

			b := p.initiator.submit(requests(op, freed, p.segment, remote, span{0, 4096})...)
			p.initiator.wait(b)
			require.ErrorContains(t, b.Err(), k.at("0"))
			p.initiator.transfer(op, kept, p.segment, remote, span{0, 4096}, span{8192, mib / 2})
		}
	})
}

// A refused copy has the ranges that pass through a block together copied one by one. All are of freed memory here.
func TestRefusedRangesAreLoggedOnceAndNotTraced(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		app := newDevice(t, 0)
		file := filepath.Join(t.TempDir(), "trace.json")
		p := startPair(t, func(c *core.Config) { c.TraceFile = file })
		freed, remote := p.initiator.on(app, mib), p.target.onHost(mib)
		app.Free(freed.addr)
		b := p.initiator.submit(requests(core.Write, freed, p.segment, remote, scattered(mib/4, 300, 4096)...)...)
		p.initiator.wait(b)
		require.Zero(t, b.Summary().Completed)
		require.Equal(t, 1, p.initiator.logs.FilterMessage("a staging job failed").Len())
		require.NoError(t, p.initiator.FreeBatch(b))
		require.NoError(t, p.target.closes())
		require.NoError(t, p.initiator.closes()) // the last engine that closes has the file written
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Contains(t, string(text), "write batch")
		require.NotContains(t, string(text), "copy out")
	})
}

// A copy that fails in CUDA breaks the context for good: transfers of that device's memory fail from then on, others do not.
func TestABrokenContextFailsWhatIsOnItsDevice(t *testing.T) {
	gpus.use(t, "")
	simtest.NoLeaks(t)
	broken, other := newDevice(t, 0), newDevice(t, 1)
	p := startPair(t, nil)
	spans := scattered(mib, 4096, 100*kib)
	local, kept, remote := p.initiator.on(broken, mib), p.initiator.on(other, mib), p.target.onHost(mib)
	simtest.Faults(t, "exec:1")
	for range 3 {
		for op := range ways {
			b := p.initiator.submit(requests(op, local, p.segment, remote, spans...)...)
			p.initiator.wait(b)
			require.ErrorContains(t, b.Err(), "failed with 700: CUDA_ERROR_ILLEGAL_ADDRESS")
			require.Zero(t, b.Summary().Completed)
			p.initiator.transfer(op, kept, p.segment, remote, spans...)
			p.initiator.transfer(op, p.initiator.onHost(mib), p.segment, remote, spans...)
		}
	}
	require.ErrorContains(t, p.initiator.closes(), "cuda:0")
	simtest.Faults(t, "") // which the device recovers with
}

// By default an engine measures the devices whose memory it moves, beside the first transfers, and copies the right bytes all the
// while.
func TestAnEngineMeasuresItsDevicesBesideTransfers(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		simtest.Seed(t, 5)
		app := newDevice(t, 1)
		forgetTables(t, 1)
		p := startPair(t, func(c *core.Config) { c.DeviceCopy = core.DefaultConfig().DeviceCopy })
		local, remote := p.initiator.on(app, mib), p.target.onHost(mib)
		spans := scattered(mib, 4096, 1000, 70*kib)
		measured := func() bool {
			for op := range ways {
				p.initiator.transfer(op, local, p.segment, remote, spans...)
			}
			copies := p.initiator.DeviceCopies()
			require.Len(t, copies, 2)
			return copies[0].Table != nil && copies[1].Table != nil
		}
		require.Eventually(t, measured, time.Minute, time.Millisecond)
		for op := range ways {
			p.initiator.transfer(op, local, p.segment, remote, spans...)
		}
	})
}
