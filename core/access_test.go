package core_test

import (
	"bytes"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/status"

	"github.com/stretchr/testify/require"
)

var accesses = map[string]core.Access{
	"none": core.NoAccess, "read": core.RemoteRead, "write": core.RemoteWrite, "both": core.FullAccess,
}

// registerFor registers one range.
func registerFor(e *core.Engine, b []byte, access core.Access) error {
	return e.RegisterFor([]core.Range{{Addr: at(b), Length: uint64(len(b))}}, "cpu:0", access)
}

func TestADescriptorSaysWhatPeersMayDoAndLeavesOutWhatTheyMayNotTouch(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	memory := pages(t, 4*4096)
	var want []metadata.Buffer
	for i, access := range []core.Access{core.RemoteWrite, core.NoAccess, core.RemoteRead, core.FullAccess} {
		require.NoError(t, registerFor(e, memory[i*4096:][:4096], access))
		if access != core.NoAccess {
			shown := map[core.Access]metadata.Access{core.RemoteRead: "read", core.RemoteWrite: "write"}[access]
			want = append(want, metadata.Buffer{Name: "cpu:0", Addr: uint64(at(memory)) + uint64(i*4096), Length: 4096, Access: shown})
		}
	}
	require.Equal(t, want, e.Descriptor().Buffers)
}

func TestFlagsThatDoNotExistRegisterNothing(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	memory := pages(t, 4096)
	for _, access := range []core.Access{4, 7, 0x80, 0x100, 1<<32 - 1} {
		err := registerFor(e, memory, access)
		requireCode(t, status.InvalidArgument, err)
		require.ErrorContains(t, err, "flags that do not exist")
		require.Empty(t, e.Descriptor().Buffers)
		requireCode(t, status.AddressNotRegistered, e.Unregister(at(memory)))
	}
}

func TestAccessStaysUntilTheMemoryIsUnregistered(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	memory := pages(t, 2*4096)
	may := func(op core.Opcode) bool {
		region, err := e.Memory().PinRemote(uint64(at(memory)), 4096, op)
		if err == nil {
			region.Unpin()
		}
		return err == nil
	}
	require.NoError(t, registerFor(e, memory[:4096], core.RemoteRead))
	for _, overlapping := range [][]byte{memory[:4096], memory, memory[100:200]} {
		requireCode(t, status.AddressOverlapped, registerFor(e, overlapping, core.FullAccess))
		require.True(t, may(core.Read))
		require.False(t, may(core.Write), "a registration that failed has changed nothing")
	}
	require.NoError(t, e.Unregister(at(memory)))
	require.NoError(t, registerFor(e, memory[:4096], core.RemoteWrite))
	require.False(t, may(core.Read))
	require.True(t, may(core.Write))
}

func TestRangesAreRegisteredWithOneAccessOrNotAtAll(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	memory := pages(t, 2*4096)
	page := func(i int) core.Range { return core.Range{Addr: at(memory) + uintptr(i*4096), Length: 4096} }
	requireCode(t, status.AddressOverlapped, e.RegisterFor([]core.Range{page(0), page(1), page(0)}, "", core.RemoteRead))
	require.Empty(t, e.Descriptor().Buffers)
	require.NoError(t, e.RegisterFor([]core.Range{page(0), page(1)}, "", core.RemoteRead))
	for _, b := range e.Descriptor().Buffers {
		require.Equal(t, metadata.ReadOnly, b.Access)
	}
}

// The rule for the own segment: it is served as to a peer. The local side of a transfer is bound by nothing.
func TestTransfersOfTheOwnSegmentKeepToItsAccess(t *testing.T) {
	for name, access := range accesses {
		for _, op := range []core.Opcode{core.Read, core.Write} {
			t.Run(name+" "+op.String(), func(t *testing.T) {
				e := startEngine(t, metadatatest.NewDirectory(), nil)
				memory, local := pages(t, 4096), pages(t, 4096)
				fill(memory, 1)
				fill(local, 2)
				before, own := bytes.Clone(memory), bytes.Clone(local)
				require.NoError(t, registerFor(e, memory, access))
				require.NoError(t, registerFor(e, local, core.NoAccess))
				b := onItself(t, e, core.Request{Opcode: op, Local: at(local), Remote: uint64(at(memory)), Length: 4096})
				if access.Allows(op) {
					require.Equal(t, []core.State{completed}, states(t, b))
					require.True(t, bytes.Equal(memory, local))
					return
				}
				require.Equal(t, []core.State{failed}, states(t, b))
				require.True(t, bytes.Equal(before, memory) && bytes.Equal(own, local), "a refused transfer has moved bytes")
				if access == core.NoAccess {
					require.ErrorContains(t, b.Err(), "not open to peers")
				} else {
					require.ErrorIs(t, b.Err(), core.ErrForbidden)
					require.ErrorContains(t, b.Err(), "its owner does not let peers "+op.Verb()+" it")
				}
			})
		}
	}
}
