package driver_test

import (
	"testing"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// asUsers have it has engines prepare and measure their devices.
func asUsers(c *core.Config) {
	c.DeviceCopy, c.DevicePrepare = core.DefaultConfig().DeviceCopy, true
}

// prepared waits until the device was measured: nothing happens on it in the background any more.
func (n *node) prepared() {
	n.t.Helper()
	eventually(n.t, func() bool {
		for _, copies := range n.DeviceCopies() {
			if copies.Table == nil {
				return false
			}
		}
		return true
	}, "the devices are measured")
}

// held is a stream of an application whose work does not end before simtest.ReleaseHangs.
func held(t *testing.T, app *accelerator, memory uintptr) simtest.Stream {
	stream := app.NewStream()
	pinned := app.AllocPinned(64)
	before := simtest.TakeReport(t).Faults
	simtest.Faults(t, "exec:1=hang")
	stream.Read(pinned, memory, 64)
	eventually(t, func() bool { return simtest.TakeReport(t).Faults > before }, "the stream hangs")
	return stream
}

// orders has a transfer follow what is in a stream.
func (n *node) orders(app *accelerator, stream simtest.Stream, op core.Opcode, local *memory, segment core.SegmentID, remote *memory) {
	n.t.Helper()
	app.Do(func() {
		require.NoError(n.t, n.Order("cuda", stream.Handle, &core.Arrays{
			Opcode: op, Target: segment, Local: []uint64{uint64(local.addr)}, Remote: []uint64{uint64(remote.addr)}, Lengths: []uint64{uint64(local.length)},
		}))
	})
}

// closesWhenNoStreamWaits closes an engine while a stream hangs and is to come to a transfer. In CUDA calls that free memory wait for
// that stream, and the copies of the transfer would wait for these calls.
func closesWhenNoStreamWaits(t *testing.T, n *node) {
	calls := func(names ...string) (sum uint64) {
		report := simtest.TakeReport(t)
		for _, name := range names {
			sum += report.Calls[name]
		}
		return sum
	}
	freed, asked := calls("cuMemFree_v2", "cuMemFreeHost"), calls("cuEventQuery")
	closed := make(chan error, 1)
	go func() { closed <- n.closes() }()
	eventually(t, func() bool { return calls("cuEventQuery") > asked+4 }, "it waits for the stream")
	require.Equal(t, freed, calls("cuMemFree_v2", "cuMemFreeHost"))
	simtest.ReleaseHangs(t)
	require.NoError(t, <-closed)
	require.Greater(t, calls("cuMemFree_v2", "cuMemFreeHost"), freed)
}

func TestAnEngineThatClosesLeavesATransferThatAnotherOneHasOrdered(t *testing.T) {
	for op := range ways {
		for _, when := range []string{"before the stream comes to it", "after it has begun"} {
			t.Run(op.String()+" "+when, func(t *testing.T) {
				gpus.use(t, "")
				simtest.NoLeaks(t)
				app := newDevice(t, 0)
				target, one, other := startNode(t, nil), startNode(t, asUsers), startNode(t, asUsers)
				local, theirs, remote := one.on(app, 4*mib), other.on(app, mib), target.onHost(4*mib)
				other.transfer(core.Write, theirs, other.opens(target.Name()), target.onHost(mib), scattered(mib, 4096, 100*kib)...)
				one.prepared()
				to, from := ways[op](local, remote)
				want := from.read()
				segment := one.opens(target.Name())
				stream := held(t, app, local.addr)
				one.orders(app, stream, op, local, segment, remote)
				if when == "after it has begun" {
					simtest.ReleaseHangs(t)
					require.NoError(t, other.closes())
				} else {
					closesWhenNoStreamWaits(t, other)
				}
				stream.Wait()
				requireBytes(t, want, to)
			})
		}
	}
}

func TestAnEngineThatClosesWhileItMeasuresADeviceLeavesThatToAnotherOne(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		simtest.Cost(t, "d2h=25/5000,h2d=25/5000") // a table takes long
		app := newDevice(t, 1)
		tables := forgetTables(t, 1)
		one, other := startNode(t, asUsers), startNode(t, asUsers)
		one.on(app, mib)
		eventually(t, func() bool { // it measures
			calls := simtest.TakeReport(t).Calls
			return calls["cuEventElapsedTime"]+calls["aclrtEventElapsedTime"] > 0
		}, "it measures")
		require.NoError(t, one.closes())
		for kind := range device.WithinDevice {
			require.Nil(t, tables.Of(kind))
		}
		simtest.Cost(t, "0")
		other.on(app, mib)
		other.prepared()
	})
}

// A library may wait for all streams before it opens the memory of one device to another. So that is done before a stream comes to
// the transfer.
func TestATransferBetweenTwoGPUsInTheOrderOfAStreamFindsTheirMemoryOpen(t *testing.T) {
	for op := range ways {
		t.Run(op.String(), func(t *testing.T) {
			gpus.use(t, "")
			simtest.NoLeaks(t)
			apps := []*accelerator{newDevice(t, 0), newDevice(t, 1)}
			n := startNode(t, asUsers)
			local, remote := n.on(apps[0], mib), n.on(apps[1], mib)
			n.prepared()
			to, from := ways[op](local, remote)
			want := from.read()
			opened := simtest.TakeReport(t).Calls["cuCtxEnablePeerAccess"]
			stream := held(t, apps[0], local.addr)
			n.orders(apps[0], stream, op, local, core.LocalSegment, remote)
			before := simtest.TakeReport(t)
			require.EqualValues(t, opened+2, before.Calls["cuCtxEnablePeerAccess"], "in both directions")
			simtest.ReleaseHangs(t)
			stream.Wait()
			requireBytes(t, want, to)
			after := simtest.TakeReport(t)
			require.Equal(t, before.Calls["cuCtxEnablePeerAccess"], after.Calls["cuCtxEnablePeerAccess"])
			require.Equal(t, before.Calls["cuModuleLoadData"], after.Calls["cuModuleLoadData"])
			require.Equal(t, uint64(mib), after.CopiedBytes["d2d"]-before.CopiedBytes["d2d"])
		})
	}
}
