package device

import (
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const enough = 10 * time.Second

func memoryAt(addr uintptr, length uint64) []byte {
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), length)
}

// bench is a device, to which the thread of the test is bound, with memory of 4096 bytes each.
type bench struct {
	host         *Host
	device       Device
	stream       Stream
	event        Event
	a, b, pinned uintptr
}

func onBench(t *testing.T, test func(b *bench)) {
	b := &bench{host: NewHost("host", 2)}
	ok := func(err error) { require.NoError(t, err) }
	var err error
	b.device, err = b.host.Open(1)
	ok(err)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ok(b.device.Bind())
	b.stream, err = b.device.NewStream()
	ok(err)
	b.event, err = b.device.NewEvent()
	ok(err)
	b.a, err = b.device.Allocate(4096)
	ok(err)
	b.b, err = b.device.Allocate(4096)
	ok(err)
	b.pinned, err = b.device.AllocatePinned(4096)
	ok(err)
	test(b)
	require.Len(t, b.host.Leaks(), 5, "three allocations, a stream and an event, a thread")
	ok(b.stream.Close())
	ok(b.event.Close())
	ok(b.device.Free(b.a))
	ok(b.device.Free(b.b))
	ok(b.device.FreePinned(b.pinned))
	ok(b.device.Unbind())
	require.Empty(t, b.host.Leaks())
}

func TestCopiesAreDoneInOrder(t *testing.T) {
	onBench(t, func(b *bench) {
		copy(memoryAt(b.pinned, 4), "abcd")
		for kind, copies := range [][]Copy{
			HostToDevice: {{b.a, b.pinned, 4}},
			WithinDevice: {{b.b, b.a, 4}, {b.a, b.b, 2}},
		} {
			issued, err := b.stream.Copy(Kind(kind), copies)
			require.NoError(t, err)
			require.Equal(t, len(copies), issued)
		}
		_, err := b.stream.Copy(DeviceToHost, []Copy{{b.pinned + 100, b.b, 4}, {b.pinned + 102, b.a, 4}})
		require.NoError(t, err)
		require.NoError(t, b.stream.Record(b.event))
		done, err := b.event.Wait(enough)
		require.NoError(t, err)
		require.True(t, done)
		require.Equal(t, "ababcd", string(memoryAt(b.pinned+100, 6)))
		done, err = b.event.Wait(enough)
		require.NoError(t, err)
		require.True(t, done, "it has happened, and stays so until it is recorded again")
	})
}

func TestBadCopiesAreRefused(t *testing.T) {
	plain := make([]byte, 64)
	onBench(t, func(b *bench) {
		for name, c := range map[string]struct {
			kind Kind
			copy Copy
			why  string
		}{
			"beyond an allocation":    {DeviceToHost, Copy{b.pinned, b.a + 4000, 97}, "source"},
			"no memory of the device": {HostToDevice, Copy{64, b.pinned, 1}, "destination"},
			"a length that wraps":     {HostToDevice, Copy{b.a + 1, b.pinned, ^uint64(0)}, "destination"},
			"the wrong way":           {HostToDevice, Copy{b.pinned, b.a, 1}, "destination"},
			"memory not page-locked":  {HostToDevice, Copy{b.a, uintptr(unsafe.Pointer(&plain[0])), 1}, "source"},
			"unaligned in the device": {WithinDevice, Copy{b.a, b.b + 1, 1}, "aligned to 64"},
		} {
			issued, err := b.stream.Copy(c.kind, []Copy{c.copy})
			require.Zero(t, issued, name)
			require.ErrorContains(t, err, c.why, name)
		}
		issued, err := b.stream.Copy(HostToDevice, []Copy{{b.a, b.pinned, 1}, {0, b.pinned, 1}, {b.a, b.pinned, 1}})
		require.Equal(t, 1, issued, "those before the bad one are queued")
		require.Error(t, err)
		require.NoError(t, b.stream.Drain(enough))
	})
}

func TestBatchesAreAnOption(t *testing.T) {
	onBench(t, func(b *bench) {
		copies := []Copy{{b.a, b.pinned, 1}, {b.b, b.pinned, 1}}
		require.ErrorIs(t, b.stream.CopyBatch(HostToDevice, copies), ErrNoBatches)
		b.host.Batches = true
		copy(memoryAt(b.pinned, 1), "x")
		require.NoError(t, b.stream.CopyBatch(HostToDevice, copies))
		require.ErrorIs(t, b.stream.CopyBatch(WithinDevice, copies), ErrNoBatches)
		require.NoError(t, b.stream.Drain(enough))
		require.Equal(t, "x", string(memoryAt(b.b, 1)))
	})
}

func TestWaitsEndInTime(t *testing.T) {
	onBench(t, func(b *bench) {
		_, err := b.event.Wait(enough)
		require.ErrorContains(t, err, "never recorded")
		d, s := b.device.(*hostDevice), b.stream.(*hostStream)
		d.mu.Lock() // no copy is done meanwhile
		require.NoError(t, s.push(hostStep{kind: HostToDevice, copy: Copy{b.a, b.pinned, 1}}))
		require.NoError(t, s.Record(b.event))
		done, err := b.event.Wait(time.Millisecond)
		require.NoError(t, err)
		require.False(t, done)
		require.ErrorContains(t, s.Drain(time.Millisecond), "busy")
		d.mu.Unlock()
		done, err = b.event.Wait(enough)
		require.NoError(t, err)
		require.True(t, done)
	})
}

func TestACopyThatFailsLaterFailsWhatIsBehindIt(t *testing.T) {
	onBench(t, func(b *bench) {
		s := b.stream.(*hostStream)
		copy(memoryAt(b.pinned, 2), "xy")
		require.NoError(t, s.push(hostStep{kind: HostToDevice, copy: Copy{0, b.pinned, 1}})) // as if freed after it was queued
		_, err := s.Copy(HostToDevice, []Copy{{b.a, b.pinned, 2}})
		require.NoError(t, err)
		require.NoError(t, s.Record(b.event))
		_, err = b.event.Wait(enough)
		require.ErrorContains(t, err, "destination")
		require.ErrorContains(t, s.Drain(enough), "destination")
		require.NotEqual(t, "xy", string(memoryAt(b.a, 2)))
	})
}

func TestADeviceIsUsedOnThreadsThatAreBoundToIt(t *testing.T) {
	onBench(t, func(b *bench) {
		other, err := b.host.Open(0)
		require.NoError(t, err)
		require.ErrorContains(t, other.Bind(), "bound to host:1")
		_, err = other.Allocate(1)
		require.ErrorContains(t, err, "not bound")
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			runtime.LockOSThread() // not unlocked: a thread of its own
			unbound := func(err error) { require.ErrorContains(t, err, "not bound") }
			unbound(b.device.Unbind())
			unbound(b.device.Free(b.a))
			unbound(b.device.FreePinned(b.pinned))
			_, err := b.device.AllocatePinned(1)
			unbound(err)
			_, err = b.device.NewStream()
			unbound(err)
			_, err = b.device.NewEvent()
			unbound(err)
			_, err = b.stream.Copy(HostToDevice, []Copy{{b.a, b.pinned, 1}})
			unbound(err)
			_, err = b.event.Wait(enough)
			unbound(err)
			unbound(b.stream.Record(b.event))
			unbound(b.stream.Drain(enough))
			unbound(b.stream.Close())
			unbound(b.event.Close())
		}()
		<-ended
	})
}

func TestMemoryIsLocatedAndFreedOnce(t *testing.T) {
	h := NewHost("host", 2)
	require.NoError(t, h.Require())
	require.Equal(t, "host", h.Name())
	memory, err := h.Allocate(1, 100)
	require.NoError(t, err)
	addr := uintptr(unsafe.Pointer(&memory[0]))
	for _, at := range []uintptr{addr, addr + 99} {
		index, found, err := h.Locate(at, "*")
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, 1, index)
	}
	for _, at := range []uintptr{addr - 1, addr + 100, 0} {
		_, found, err := h.Locate(at, "host:1")
		require.NoError(t, err)
		require.False(t, found)
	}
	require.Len(t, h.Leaks(), 1)
	require.NoError(t, h.Free(memory))
	require.Error(t, h.Free(memory))
	require.Empty(t, h.Leaks())
	_, err = h.Allocate(2, 1)
	require.ErrorContains(t, err, "there are 2 such devices")
	_, err = h.Open(-1)
	require.Error(t, err)
	_, err = h.Allocate(0, 0)
	require.ErrorContains(t, err, "allocating 0 bytes")
}

func TestAClosedStreamTakesNothing(t *testing.T) {
	onBench(t, func(b *bench) {
		s, err := b.device.NewStream()
		require.NoError(t, err)
		require.NoError(t, s.Close())
		require.ErrorContains(t, s.Record(b.event), "closed")
		require.ErrorContains(t, s.Close(), "closed already")
	})
}

func TestKindsHaveNames(t *testing.T) {
	require.Equal(t, "device to host", DeviceToHost.String())
	require.Equal(t, "host to device", HostToDevice.String())
	require.Equal(t, "within the device", WithinDevice.String())
}
