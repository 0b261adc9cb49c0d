package hostmem

import (
	"bytes"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mappedToBringIn is memory, where the kernel can bring it in: since Linux 5.14.
func mappedToBringIn(t *testing.T, length int) []byte {
	memory := mapped(t, length)
	if err := unix.Madvise(memory, unix.MADV_POPULATE_READ); err == unix.EINVAL {
		t.Skip("the kernel is older than 5.14")
	}
	Forget(AddressOf(memory), uint64(length))
	return memory
}

func TestMemoryThatWasBroughtInMayBeTouched(t *testing.T) {
	for _, a := range []Access{Reading, Writing} {
		memory := mappedToBringIn(t, 8*page)
		fill(memory, 3)
		before := slices.Clone(memory)
		at, length := AddressOf(memory)+100, uint64(5*page)
		var c Copier
		require.False(t, c.MayTouch(at, length, a))
		require.True(t, c.BringIn(at, length, a))
		require.True(t, c.MayTouch(at, length, a))
		require.True(t, bytes.Equal(before, memory))
		Forget(AddressOf(memory), uint64(len(memory)))
	}
}

func TestMemoryThatCannotBeAccessedIsNotBroughtIn(t *testing.T) {
	var c Copier
	gone := mappedToBringIn(t, 4*page)
	protect(t, gone[2*page:3*page], unix.PROT_NONE)
	require.False(t, c.BringIn(AddressOf(gone), 4*page, Reading))
	require.False(t, c.MayTouch(AddressOf(gone), 4*page, Reading))
	fixed := mappedToBringIn(t, 4*page)
	protect(t, fixed, unix.PROT_READ)
	require.True(t, c.BringIn(AddressOf(fixed), 4*page, Reading))
	require.False(t, c.BringIn(AddressOf(fixed), 4*page, Writing))
	require.False(t, c.BringIn(AddressOf(fixed), 0, Reading))
}

func TestMemoryIsNotTouchedUnderOtherSignalHandlersThoughItWasBroughtIn(t *testing.T) {
	memory := mappedToBringIn(t, page)
	withHandler(t, 1) // SIG_IGN
	var c Copier
	require.False(t, c.BringIn(AddressOf(memory), page, Reading))
}
