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

func TestLaunchesOfTheStridedKernelHaveAllGroupsAndNotTooManySlots(t *testing.T) {
	one := [device.Dimensions]uint32{1, 1, 1, 1}
	for _, test := range []struct {
		name   string
		length uint64
		counts [device.Dimensions]uint32
		bases  int
		want   kerneltest.Launches
	}{
		{"no group", 64, one, 0, kerneltest.Launches{}},
		{"no byte", 0, one, 3, kerneltest.Launches{}},
		{"no run", 64, [device.Dimensions]uint32{1 << 31, 1 << 31, 1 << 31, 0}, 3, kerneltest.Launches{}},
		{"one group", 64, one, 1, kerneltest.Launches{Launches: 1, Groups: 1, Slots: 4}},
		{"a full table", 64, one, 249, kerneltest.Launches{Launches: 1, Groups: 249, Slots: 249 * 4}},
		{"one more", 64, one, 250, kerneltest.Launches{Launches: 2, Groups: 250, Slots: 250 * 4}},
		{"two groups of 16 GiB a launch", 1 << 30, [device.Dimensions]uint32{4, 1, 4, 1}, 5,
			kerneltest.Launches{Launches: 3, Groups: 5, Slots: 5 << 30}},
		{"one group of 32 GiB a launch", 16, [device.Dimensions]uint32{1 << 16, 1 << 15, 1, 1}, 3,
			kerneltest.Launches{Launches: 3, Groups: 3, Slots: 3 << 31}},
	} {
		s := &device.Strided{Length: test.length, Counts: test.counts}
		got, err := kerneltest.CountStrided(s, make([]device.Base, test.bases))
		require.NoError(t, err, test.name)
		require.Equal(t, test.want, got, test.name)
	}
}

func TestGroupsThatNoLaunchCanHaveAreRefused(t *testing.T) {
	for _, s := range []device.Strided{
		{Length: 1<<30 + 1, Counts: [device.Dimensions]uint32{1, 1, 1, 1}},
		{Length: 16, Counts: [device.Dimensions]uint32{1 << 16, 1<<15 + 1, 1, 1}},
		{Length: 1 << 30, Counts: [device.Dimensions]uint32{33, 1, 1, 1}},
		{Length: 1, Counts: [device.Dimensions]uint32{1<<32 - 1, 1<<32 - 1, 1<<32 - 1, 1<<32 - 1}},
	} {
		_, err := kerneltest.CountStrided(&s, []device.Base{{Dst: to, Src: from}})
		require.EqualError(t, err, "the launch failed with 1", "%+v", s)
	}
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

// strided copies runs of a length in three dimensions, one of them backwards, between unlike places. Groups make up one of these
// dimensions: each begins within the extent of the one before it.
func strided(t *testing.T, length uint64, skew uintptr, gap int64) {
	name := fmt.Sprintf("runs of %d, from %d on, %d apart", length, skew, gap)
	random := rand.New(rand.NewPCG(length, uint64(skew)))
	dst, src, model := sides(random)
	n, step := int64(min(600, max(1, (sideBytes-64)/6/(int64(length)+gap)))), int64(length)+gap
	s := &device.Strided{
		Length: length, Counts: [device.Dimensions]uint32{2, 1, 1, 3},
		DstStrides: [device.Dimensions]int64{3 * n * step, 77, 5, n * step},
		SrcStrides: [device.Dimensions]int64{-step, 5, 77, step + 16},
	}
	var at []device.Base
	var copies []device.Copy
	for _, group := range random.Perm(int(n)) {
		base := device.Base{
			Dst: to + skew + uintptr(int64(group)*step),
			Src: from + 19 + uintptr(step) + uintptr(random.Int64N(sideBytes-19-32-4*step)),
		}
		at = append(at, base)
		for i := range int64(2) {
			for l := range int64(3) {
				c := device.Copy{
					Dst: base.Dst + uintptr(i*s.DstStrides[0]+l*s.DstStrides[3]), Length: length,
					Src: base.Src + uintptr(i*s.SrcStrides[0]+l*s.SrcStrides[3]),
				}
				copies = append(copies, c)
				copy(model[c.Dst-to:], src.Bytes[c.Src-from:][:length])
			}
		}
	}
	require.NoError(t, kerneltest.CopyStrided(dst, src, s, at, copies, 2), name)
	require.True(t, bytes.Equal(model, dst.Bytes), name)
}
