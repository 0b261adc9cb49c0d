package core_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/staging"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
)

// claims is a runtime that has what memory it says, and no devices.
type claims struct {
	name  string
	has   func(addr uintptr) bool
	err   error // of Locate
	asked []string
}

func (c *claims) Name() string   { return c.name }
func (c *claims) Require() error { return nil }

func (c *claims) Locate(addr uintptr, location string) (index int, found bool, err error) {
	c.asked = append(c.asked, location)
	return 0, c.has != nil && c.has(addr), c.err
}

func (c *claims) Open(index int) (device.Device, error) { return nil, errors.New("there are none") }

func startWith(t *testing.T, runtimes ...device.Runtime) *core.Engine {
	t.Helper()
	return startEngine(t, metadatatest.NewDirectory(), func(o *core.Options) { o.Runtimes = runtimes })
}

func TestMemoryOfDifferentVendorsDevicesIsInOneBatch(t *testing.T) {
	const size = 100 << 10
	npus, gpus := device.NewHost("npu", 1), device.NewHost("cuda", 1)
	gpus.Traits = device.Traits{Alignment: 1, Ways: device.WaysOf(device.Single, device.Batch), Default: device.Batch}
	gpus.Batches = true
	w := &wire{memory: make([]byte, 4*size)}
	p := startPairWith(t, &transporttest.Transport{OnSubmit: w.carry}, func(o *core.Options) { o.Runtimes = []device.Runtime{npus, gpus} })
	fill(w.memory, 1)
	want := slices.Clone(w.memory)
	var reqs []core.Request
	var local [][]byte
	for i, host := range []*device.Host{npus, gpus} {
		memory, err := host.Allocate(0, 2*size)
		require.NoError(t, err)
		t.Cleanup(func() {
			_ = p.Unregister(at(memory)) // fails on a closed engine
			require.NoError(t, host.Free(memory))
		})
		fill(memory, byte(2+i))
		require.NoError(t, p.Register(at(memory), 2*size, "*", true))
		local = append(local, memory)
		copy(want[2*i*size:], memory[:size])
		for _, at := range []int{0, size / 3, size / 2} {
			length := uint64(size/3 + i)
			reqs = append(reqs,
				core.Request{Opcode: core.Write, Local: addressIn(memory, at), Target: p.segment, Remote: uint64(2*i*size + at), Length: length},
				core.Request{Opcode: core.Read, Local: addressIn(memory, size+at), Target: p.segment, Remote: uint64((2*i+1)*size + at), Length: length})
		}
	}
	b := p.batch(t, len(reqs))
	require.NoError(t, p.Submit(b, reqs, nil))
	wait(t, b)
	require.NoError(t, b.Err())
	for i, memory := range local {
		require.True(t, bytes.Equal(want[2*i*size:][:size*5/6], w.memory[2*i*size:][:size*5/6]), "written from %d", i)
		require.True(t, bytes.Equal(w.memory[(2*i+1)*size:][:size*5/6], memory[size:][:size*5/6]), "read to %d", i)
	}
}

func addressIn(b []byte, offset int) uintptr { return at(b) + uintptr(offset) }

func TestTheRuntimeThatALocationNamesIsAskedFirst(t *testing.T) {
	memory := pages(t, 4096)
	npus, gpus := &claims{name: "npu"}, &claims{name: "cuda", err: errors.New("no driver")}
	e := startWith(t, npus, gpus)
	require.ErrorContains(t, e.Register(at(memory), 4096, "cuda:0", true), "no driver")
	require.Empty(t, npus.asked)
	gpus.err = nil
	for _, location := range []string{"cuda:0", "npu:0", "*"} {
		npus.asked, gpus.asked = nil, nil
		require.NoError(t, e.Register(at(memory), 4096, location, true))
		require.NoError(t, e.Unregister(at(memory)))
		for _, r := range []*claims{npus, gpus} {
			require.Equal(t, []string{location, location}, r.asked, "the beginning and the end")
		}
	}
}

func TestARangeThatEndsOnADeviceOfAnotherKindIsRefused(t *testing.T) {
	memory := pages(t, 8192)
	first := func(addr uintptr) bool { return addr < at(memory)+4096 }
	second := func(addr uintptr) bool { return !first(addr) }
	for name, runtimes := range map[string][]device.Runtime{
		"an NPU's and the host's": {&claims{name: "npu", has: first}, &claims{name: "cuda"}},
		"the host's and a GPU's":  {&claims{name: "npu"}, &claims{name: "cuda", has: second}},
		"an NPU's and a GPU's":    {&claims{name: "npu", has: first}, &claims{name: "cuda", has: second}},
		"a GPU's and an NPU's":    {&claims{name: "npu", has: second}, &claims{name: "cuda", has: first}},
	} {
		err := startWith(t, runtimes...).Register(at(memory), 8192, "*", true)
		requireCode(t, status.InvalidArgument, err)
		require.ErrorContains(t, err, "begins and ends in memory of different kinds or devices", name)
	}
}

func TestAnEngineSaysHowItCopiesBlocksOfEachDevice(t *testing.T) {
	host := device.NewHost("npu", 2)
	e := startEngine(t, metadatatest.NewDirectory(), func(o *core.Options) {
		o.Runtimes = []device.Runtime{host}
		o.Config.DeviceCopy = staging.AlwaysBy(device.Single)
	})
	require.Empty(t, e.DeviceCopies())
	memory, err := host.Allocate(1, 4096)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, host.Free(memory)) })
	require.NoError(t, e.Register(at(memory), 4096, "*", true))
	want := core.DeviceCopies{
		Device: "npu:1", Direction: staging.Out, Setting: staging.AlwaysBy(device.Single), Ways: host.Traits.Ways, Default: device.Single,
	}
	in := want
	in.Direction = staging.In
	require.Equal(t, []core.DeviceCopies{want, in}, e.DeviceCopies())
	require.NoError(t, e.Unregister(at(memory)))
}
