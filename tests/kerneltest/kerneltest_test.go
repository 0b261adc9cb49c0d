package kerneltest_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"kvferry/core/device"
	"kvferry/tests/kerneltest"

	"github.com/stretchr/testify/require"
)

const (
	sideBytes = 96 << 10
	to        = 0x7f0000000000
	from      = 0x7e0000000000
)

// sides are random bytes at addresses of any alignment, and what the destination should become.
func sides(random *rand.Rand) (dst, src kerneltest.Side, model []byte) {
	source := rand.NewChaCha8([32]byte{byte(random.Uint32())})
	dst, src = kerneltest.Side{Start: to, Bytes: make([]byte, sideBytes)}, kerneltest.Side{Start: from, Bytes: make([]byte, sideBytes)}
	_, _ = source.Read(dst.Bytes)
	_, _ = source.Read(src.Bytes)
	return dst, src, bytes.Clone(dst.Bytes)
}

func TestTheListKernelAccessesTheBytesOfItsCopiesAndNoOthers(t *testing.T) {
	for seed := range uint64(150) {
		random := rand.New(rand.NewPCG(seed, 5))
		dst, src, model := sides(random)
		limit, gap := 1<<(1+random.IntN(16)), random.IntN(300)
		var copies []device.Copy
		for at := random.IntN(gap + 1); at < sideBytes && len(copies) < 400; at += random.IntN(gap + 1) {
			n := min(1+random.IntN(limit), sideBytes-at)
			source := random.IntN(sideBytes - n + 1)
			copies = append(copies, device.Copy{Dst: to + uintptr(at), Src: from + uintptr(source), Length: uint64(n)})
			copy(model[at:], src.Bytes[source:][:n])
			at += n
		}
		random.Shuffle(len(copies), func(i, j int) { copies[i], copies[j] = copies[j], copies[i] })
		require.NoError(t, kerneltest.CopyList(dst, src, copies, 1+random.IntN(8)), "seed %d", seed)
		require.True(t, bytes.Equal(model, dst.Bytes), "seed %d", seed)
	}
}

func TestAListWithoutBytesLaunchesNothing(t *testing.T) {
	dst, src, _ := sides(rand.New(rand.NewPCG(1, 1)))
	require.NoError(t, kerneltest.CopyList(dst, src, nil, 4))
	require.NoError(t, kerneltest.CopyList(dst, src, []device.Copy{{Dst: to, Src: from}}, 4))
}

func TestARunThatIsTooLongIsNotLaunched(t *testing.T) {
	dst, src, _ := sides(rand.New(rand.NewPCG(1, 1)))
	s := &device.Strided{Dst: to, Src: from, Length: 1<<30 + 1, Counts: [device.Dimensions]uint32{1, 1, 1, 1}}
	require.EqualError(t, kerneltest.CopyStrided(dst, src, s, nil, 1), "the launch failed")
}

func TestTheStridedKernelAccessesTheBytesOfItsCopiesAndNoOthers(t *testing.T) {
	for length := uint64(1); length < 5000; length += 1 + length/4 {
		for _, skew := range []uintptr{0, 1, 8, 13} {
			for _, gap := range []int64{0, 3, 16} {
				strided(t, length, skew, gap)
			}
		}
	}
}

// strided copies runs of a length in three dimensions, one of them backwards, between unlike places.
func strided(t *testing.T, length uint64, skew uintptr, gap int64) {
	name := fmt.Sprintf("runs of %d, from %d on, %d apart", length, skew, gap)
	dst, src, model := sides(rand.New(rand.NewPCG(length, uint64(skew))))
	n, step := uint32(min(4, max(1, (sideBytes-64)/6/(int64(length)+gap)))), int64(length)+gap
	s := &device.Strided{
		Dst: to + skew, Src: from + 3 + uintptr(step), Length: length, Counts: [device.Dimensions]uint32{2, 1, n, 3},
		DstStrides: [device.Dimensions]int64{3 * int64(n) * step, 77, 3 * step, step},
		SrcStrides: [device.Dimensions]int64{-step, 5, 2 * step, step + 16},
	}
	s.Src += 16
	var copies []device.Copy
	for i := range int64(2) {
		for k := range int64(n) {
			for l := range int64(3) {
				c := device.Copy{
					Dst: s.Dst + uintptr(i*s.DstStrides[0]+k*s.DstStrides[2]+l*s.DstStrides[3]), Length: length,
					Src: s.Src + uintptr(i*s.SrcStrides[0]+k*s.SrcStrides[2]+l*s.SrcStrides[3]),
				}
				copies = append(copies, c)
				copy(model[c.Dst-to:], src.Bytes[c.Src-from:][:length])
			}
		}
	}
	require.NoError(t, kerneltest.CopyStrided(dst, src, s, copies, 2), name)
	require.True(t, bytes.Equal(model, dst.Bytes), name)
}
