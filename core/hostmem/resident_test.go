package hostmem

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestMemoryIsResidentOnceItWasTouchedAndUntilItIsGone(t *testing.T) {
	const pages = 600 // more than one look takes
	memory := mapped(t, pages*4096)
	require.NoError(t, unix.Madvise(memory, unix.MADV_DONTNEED))
	addr := AddressOf(memory)
	require.False(t, Resident(addr, 1))
	for i := range pages {
		memory[i*4096] = 1
	}
	require.True(t, Resident(addr+17, pages*4096-17))
	require.NoError(t, unix.Madvise(memory[300*4096:301*4096], unix.MADV_DONTNEED))
	require.False(t, Resident(addr, pages*4096))
	require.True(t, Resident(addr, 300*4096))
	require.False(t, Resident(addr, 300*4096+1))
	require.False(t, Resident(4096, 1), "where nothing is mapped")
}
