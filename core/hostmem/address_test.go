package hostmem

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestABufferWhoseAddressWasTakenStaysWhenTheStackGrows(t *testing.T) {
	buffer := make([]byte, 100)
	before := AddressOf(buffer)
	require.NotZero(t, grown(1000))
	require.Equal(t, before, AddressOf(buffer))
}

// grown makes the goroutine's stack grow.
func grown(depth int) byte {
	var here [1000]byte
	here[depth%len(here)] = 1
	if depth > 0 {
		return here[depth%len(here)] | grown(depth-1)
	}
	return here[0]
}
