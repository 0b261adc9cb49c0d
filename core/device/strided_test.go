package device_test

import (
	"testing"

	"kvferry/core/device"

	"github.com/stretchr/testify/require"
)

func TestExtentsOfAGroupReachFromItsFirstByteToItsLastOne(t *testing.T) {
	s := &device.Strided{
		Length: 16, Counts: [device.Dimensions]uint32{2, 3, 1, 4},
		DstStrides: [device.Dimensions]int64{-1000, 100, 77, 20},
		SrcStrides: [device.Dimensions]int64{500, -40, -77, 0},
	}
	dst, src := s.Extents(device.Base{Dst: 5000, Src: 7000})
	require.Equal(t, device.Copy{Dst: 4000, Src: 7000, Length: 1000 + 2*100 + 3*20 + 16}, dst)
	require.Equal(t, device.Copy{Dst: 5000, Src: 6920, Length: 500 + 2*40 + 16}, src)
	s.Counts[2] = 0
	dst, src = s.Extents(device.Base{Dst: 5000, Src: 7000})
	require.Zero(t, dst, "no copies")
	require.Zero(t, src, "no copies")
}
