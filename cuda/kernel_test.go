package cuda_test

import (
	"bytes"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"unsafe"

	"kvferry/core/device"
	"kvferry/cuda"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// realGPU is the variable that has the tests of the kernels' effects use the GPU 0 of the machine, and not the simulator.
const realGPU = "KVFERRY_TEST_REAL_GPU"

// kernelBench is memory of a GPU and of the host, with a model of both.
type kernelBench struct {
	t              *testing.T
	stream         device.Stream
	memory, pinned uintptr
	host           []byte // at pinned
	onDevice       []byte // what memory should have
	onHost         []byte // what host should have
}

const benchBytes = 3 << 20

// openKernelDevice is a simulated GPU, or a real one.
func openKernelDevice(t testing.TB, seed uint64) device.Device {
	if os.Getenv(realGPU) != "" {
		d, err := cuda.New("", zap.NewNop()).Open(0)
		require.NoError(t, err)
		return d
	}
	simtest.UseCUDA(t, "")
	simtest.NoLeaks(t)
	simtest.Cost(t, "0")
	simtest.Seed(t, seed)
	return drivertest.Open(t, 0)
}

// onKernelBench runs f on a device with random bytes in both memories.
func onKernelBench(t *testing.T, seed uint64, f func(b *kernelBench, random *rand.Rand)) {
	d := openKernelDevice(t, seed)
	drivertest.OnThread(t, d, func() {
		b := &kernelBench{t: t, onDevice: make([]byte, benchBytes), onHost: make([]byte, benchBytes)}
		var err error
		b.memory, err = d.Allocate(benchBytes)
		require.NoError(t, err)
		defer func() { require.NoError(t, d.Free(b.memory)) }()
		b.pinned, err = d.AllocatePinned(benchBytes)
		require.NoError(t, err)
		defer func() { require.NoError(t, d.FreePinned(b.pinned)) }()
		b.host = unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&b.pinned))), benchBytes)
		b.stream, err = d.NewStream()
		require.NoError(t, err)
		defer func() { require.NoError(t, b.stream.Close()) }()
		drivertest.Fill(b.onDevice, seed)
		drivertest.Fill(b.onHost, seed+1)
		copy(b.host, b.onDevice)
		b.move(device.HostToDevice, b.memory, b.pinned)
		copy(b.host, b.onHost)
		f(b, rand.New(rand.NewPCG(seed, 2)))
	})
}

// move makes a copy of all bytes, without a kernel.
func (b *kernelBench) move(kind device.Kind, to, from uintptr) {
	_, err := b.stream.Copy(kind, []device.Copy{{Dst: to, Src: from, Length: benchBytes}})
	require.NoError(b.t, err)
	require.NoError(b.t, b.stream.Drain(enough))
}

// check compares both memories with the model.
func (b *kernelBench) check(text string) {
	b.t.Helper()
	require.NoError(b.t, b.stream.Drain(enough))
	require.True(b.t, bytes.Equal(b.onHost, b.host), "the host's memory: %s", text)
	b.move(device.DeviceToHost, b.pinned, b.memory)
	require.True(b.t, bytes.Equal(b.onDevice, b.host), "the device's memory: %s", text)
	copy(b.host, b.onHost)
}

// sides are where the copies of a kind go and come from: the addresses of both memories, and their models.
func (b *kernelBench) sides(kind device.Kind) (to, from uintptr, toModel, fromModel []byte) {
	switch kind {
	case device.HostToDevice:
		return b.memory, b.pinned, b.onDevice, b.onHost
	case device.DeviceToHost:
		return b.pinned, b.memory, b.onHost, b.onDevice
	}
	return b.memory, b.memory, b.onDevice, b.onDevice
}

// randomLength is from 1 to limit, with as many short ones as long ones.
func randomLength(random *rand.Rand, limit int) int {
	return min(1+random.IntN(1<<(1+random.IntN(bits.Len(uint(limit))-1))), limit)
}

// randomGap is 0, or a few bytes, or any number below a page.
func randomGap(random *rand.Rand) int {
	return random.IntN([]int{1, 40, 4096}[random.IntN(3)])
}

// randomCopies have destinations in the first so many bytes that do not overlap, and sources in the others.
func randomCopies(random *rand.Rand, destinations int) []device.Copy {
	var copies []device.Copy
	limit := 1 << (1 + random.IntN(20))
	for at := randomGap(random); at < destinations && len(copies) < 600; at += randomGap(random) {
		n := min(randomLength(random, limit), destinations-at, benchBytes-destinations)
		from := destinations + random.IntN(benchBytes-destinations-n+1)
		if random.IntN(3) > 0 { // with addresses that agree in their last bits
			from = max(from-(from-at)%16, destinations+(at-destinations)&15)
			from = min(from, benchBytes-n)
		}
		copies = append(copies, device.Copy{Dst: uintptr(at), Src: uintptr(from), Length: uint64(n)})
		at += n
	}
	random.Shuffle(len(copies), func(i, j int) { copies[i], copies[j] = copies[j], copies[i] })
	return copies
}

var kernelKinds = []device.Kind{device.DeviceToHost, device.HostToDevice, device.WithinDevice}

func TestAKernelMakesTheCopiesOfAListAndTouchesNothingElse(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			onKernelBench(t, seed, func(b *kernelBench, random *rand.Rand) {
				for round := range 12 {
					for _, kind := range kernelKinds {
						b.copyList(kind, randomCopies(random, benchBytes/2))
						b.check(fmt.Sprintf("%v, round %d", kind, round))
					}
				}
			})
		})
	}
}

// copyList has the kernel make copies between offsets.
func (b *kernelBench) copyList(kind device.Kind, copies []device.Copy) {
	to, from, toModel, fromModel := b.sides(kind)
	placed := slices.Clone(copies)
	for i, c := range copies {
		placed[i].Dst, placed[i].Src = to+c.Dst, from+c.Src
		copy(toModel[c.Dst:], fromModel[c.Src:][:c.Length])
	}
	require.NoError(b.t, b.stream.(device.KernelStream).CopyKernel(kind, placed))
}

func TestAKernelCopiesBetweenAllAlignments(t *testing.T) {
	for _, kind := range kernelKinds {
		t.Run(kind.String(), func(t *testing.T) {
			onKernelBench(t, 9, func(b *kernelBench, _ *rand.Rand) {
				for _, length := range []uint64{1, 7, 15, 16, 17, 31, 33, 47, 64, 127, 129, 2047, 2048, 2049, 5000} {
					var copies []device.Copy
					at := uintptr(0)
					for to := range uintptr(16) {
						for from := range uintptr(16) {
							copies = append(copies, device.Copy{Dst: at + to, Src: benchBytes/2 + 3*at/4 + from, Length: length})
							at = (at + to + uintptr(length) + 31) / 16 * 16
						}
					}
					b.copyList(kind, copies)
					b.check(fmt.Sprint("copies of ", length))
				}
			})
		})
	}
}

func TestAKernelMakesStridedCopiesOfGroups(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			onKernelBench(t, seed, func(b *kernelBench, random *rand.Rand) {
				for round := range 12 {
					for _, kind := range kernelKinds {
						groups := randomLength(random, 600)
						s := randomStrided(random, benchBytes/2/groups)
						b.copyStrided(kind, s, randomBases(random, s, groups, benchBytes/2))
						b.check(fmt.Sprintf("%v, round %d: %d groups", kind, round, groups))
					}
				}
			})
		})
	}
}

func TestAKernelMakesStridedCopiesBetweenAllAlignments(t *testing.T) {
	for _, kind := range kernelKinds {
		t.Run(kind.String(), func(t *testing.T) {
			onKernelBench(t, 9, func(b *kernelBench, random *rand.Rand) {
				for _, length := range []uint64{1, 15, 16, 17, 31, 33, 64, 129, 1000} {
					s := &device.Strided{Length: length, Counts: [device.Dimensions]uint32{1, 2, 1, 2}}
					row := int64(length + 32)
					s.DstStrides = [device.Dimensions]int64{1, 2 * row, 1, row}
					s.SrcStrides = [device.Dimensions]int64{1, row + 16, 1, row - 32}
					var at []device.Base
					for i := range 256 {
						cell := uintptr(4*row) * uintptr(i)
						at = append(at, device.Base{Dst: cell + uintptr(i%16), Src: benchBytes/2 + cell/16*16 + uintptr(i/16)})
					}
					random.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
					b.copyStrided(kind, s, at)
					b.check(fmt.Sprint("copies of ", length))
				}
			})
		})
	}
}

// randomStrided is a group whose destinations do not overlap and lie within so many bytes.
func randomStrided(random *rand.Rand, destinations int) *device.Strided {
	const sources = benchBytes / 2
	s := &device.Strided{Length: uint64(randomLength(random, min(destinations, 1<<(1+random.IntN(14)))))}
	order := random.Perm(device.Dimensions)
	room := int64(s.Length)
	for n, i := range order {
		stride := room + int64(randomGap(random)%(1<<(2*n)))
		if random.IntN(2) == 0 {
			stride = (stride + 15) / 16 * 16
		}
		s.Counts[i] = uint32(1 + random.IntN(int(max(1, min(40, int64(destinations)/stride)))))
		s.DstStrides[i] = stride
		if room = stride * int64(s.Counts[i]); room > int64(destinations)/2 {
			break
		}
	}
	for i := range s.Counts {
		s.Counts[i] = max(s.Counts[i], 1)
		if s.Counts[i] > 1 && random.IntN(4) > 0 {
			s.SrcStrides[i] = int64(random.IntN(sources / 5 / int(s.Counts[i])))
		}
		for _, strides := range []*[device.Dimensions]int64{&s.DstStrides, &s.SrcStrides} {
			if random.IntN(4) == 0 { // backwards
				strides[i] = -strides[i]
			}
		}
	}
	return s
}

// randomBases are offsets of so many groups. Their destinations share the first so many bytes, each with its part, and their
// sources are in the others.
func randomBases(random *rand.Rand, s *device.Strided, groups, destinations int) []device.Base {
	to, from := s.Extents(device.Base{}) // offsets of a group at 0, of which backward strides make negative ones
	part := destinations / groups
	at := make([]device.Base, groups)
	for i, place := range random.Perm(groups) {
		at[i].Dst = uintptr(place*part+random.IntN(part-int(to.Length)+1)) - to.Dst
		at[i].Src = uintptr(destinations+random.IntN(benchBytes-destinations-int(from.Length)+1)) - from.Src
	}
	return at
}

// copyStrided has the kernel make copies between offsets.
func (b *kernelBench) copyStrided(kind device.Kind, s *device.Strided, at []device.Base) {
	to, from, toModel, fromModel := b.sides(kind)
	placed := slices.Clone(at)
	for i, base := range at {
		copyGroup(toModel, fromModel, s, base)
		placed[i] = device.Base{Dst: base.Dst + to, Src: base.Src + from}
	}
	require.NoError(b.t, b.stream.(device.StridedStream).CopyStrided(kind, s, placed))
}

// copyGroup makes the copies of a group in models.
func copyGroup(toModel, fromModel []byte, s *device.Strided, base device.Base) {
	number := [device.Dimensions]uint32{}
	for {
		at, source := int64(base.Dst), int64(base.Src)
		for i, n := range number {
			at, source = at+int64(n)*s.DstStrides[i], source+int64(n)*s.SrcStrides[i]
		}
		copy(toModel[at:], fromModel[source:][:s.Length])
		i := 0
		for ; i < device.Dimensions; i++ {
			if number[i]++; number[i] < s.Counts[i] {
				break
			}
			number[i] = 0
		}
		if i == device.Dimensions {
			break
		}
	}
}

// BenchmarkCopies measures how long a list of blocks takes in each way, from the call until the stream has come to rest: on
// the simulator the costs that were set, so that the GPU of realGPU is what it is for.
func BenchmarkCopies(b *testing.B) {
	for _, kind := range []device.Kind{device.DeviceToHost, device.HostToDevice} {
		for _, shape := range []struct{ length, blocks int }{{4 << 10, 1}, {4 << 10, 64}, {4 << 10, 256}, {16 << 10, 128}, {64 << 10, 32}, {256 << 10, 8}, {2 << 20, 1}} {
			for _, way := range []device.Way{device.Single, device.Batch, device.Kernel} {
				b.Run(fmt.Sprintf("%v/%dKiBx%d/%v", kind, shape.length>>10, shape.blocks, way), func(b *testing.B) {
					benchmarkCopies(b, kind, way, shape.length, shape.blocks)
				})
			}
		}
	}
}

func benchmarkCopies(b *testing.B, kind device.Kind, way device.Way, length, blocks int) {
	benchmarkQueue(b, length*blocks, func(s device.Stream, memory, pinned uintptr) func() error {
		var copies []device.Copy
		for i, place := range rand.New(rand.NewPCG(1, 1)).Perm(blocks) {
			c := device.Copy{Dst: pinned + uintptr(i*length), Src: memory + uintptr(2*place*length), Length: uint64(length)}
			if kind == device.HostToDevice {
				c.Dst, c.Src = c.Src, c.Dst
			}
			copies = append(copies, c)
		}
		return map[device.Way]func() error{
			device.Single: func() error { _, err := s.Copy(kind, copies); return err },
			device.Batch:  func() error { return s.CopyBatch(kind, copies) },
			device.Kernel: func() error { return s.(device.KernelStream).CopyKernel(kind, copies) },
		}[way]
	})
}

// benchmarkQueue measures what queues copies of so many bytes between page-locked memory and twice as much of the device.
func benchmarkQueue(b *testing.B, size int, prepare func(s device.Stream, memory, pinned uintptr) (queue func() error)) {
	d := openKernelDevice(b, 1)
	drivertest.OnThread(b, d, func() {
		memory, err := d.Allocate(uint64(2 * size))
		require.NoError(b, err)
		defer func() { require.NoError(b, d.Free(memory)) }()
		pinned, err := d.AllocatePinned(uint64(size))
		require.NoError(b, err)
		defer func() { require.NoError(b, d.FreePinned(pinned)) }()
		s, err := d.NewStream()
		require.NoError(b, err)
		defer func() { require.NoError(b, s.Close()) }()
		queue := prepare(s, memory, pinned)
		require.NoError(b, queue())
		require.NoError(b, s.Drain(enough))
		b.SetBytes(int64(size))
		b.ResetTimer()
		for b.Loop() {
			if err := queue(); err != nil {
				b.Fatal(err)
			}
			if err := s.Drain(enough); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkStrided measures runs of KV blocks, which are twice as far apart on the device as on the host: as groups, and as a list.
func BenchmarkStrided(b *testing.B) {
	for _, kind := range []device.Kind{device.DeviceToHost, device.HostToDevice} {
		for _, shape := range []struct{ length, runs, blocks int }{{128, 256, 128}, {256, 128, 128}, {1 << 10, 32, 128}, {2 << 10, 16, 600}, {4 << 10, 16, 128}} {
			for _, strided := range []bool{true, false} {
				name := fmt.Sprintf("%v/%dBx%dx%d/strided=%v", kind, shape.length, shape.runs, shape.blocks, strided)
				b.Run(name, func(b *testing.B) { benchmarkStrided(b, kind, strided, shape.length, shape.runs, shape.blocks) })
			}
		}
	}
}

func benchmarkStrided(b *testing.B, kind device.Kind, strided bool, length, runs, blocks int) {
	benchmarkQueue(b, length*runs*blocks, func(stream device.Stream, memory, pinned uintptr) func() error {
		shape := &device.Strided{Length: uint64(length), Counts: [device.Dimensions]uint32{1, 1, 1, uint32(runs)}}
		shape.DstStrides[3], shape.SrcStrides[3] = int64(length), int64(2*length)
		if kind == device.HostToDevice {
			shape.DstStrides, shape.SrcStrides = shape.SrcStrides, shape.DstStrides
		}
		var at []device.Base
		var copies []device.Copy
		for i, place := range rand.New(rand.NewPCG(1, 1)).Perm(blocks) {
			base := device.Base{Dst: pinned + uintptr(i*runs*length), Src: memory + uintptr(2*place*runs*length)}
			if kind == device.HostToDevice {
				base.Dst, base.Src = base.Src, base.Dst
			}
			at = append(at, base)
			for run := range int64(runs) {
				copies = append(copies, device.Copy{
					Dst: base.Dst + uintptr(run*shape.DstStrides[3]), Src: base.Src + uintptr(run*shape.SrcStrides[3]),
					Length: uint64(length),
				})
			}
		}
		if strided {
			return func() error { return stream.(device.StridedStream).CopyStrided(kind, shape, at) }
		}
		return func() error { return stream.(device.KernelStream).CopyKernel(kind, copies) }
	})
}

// BenchmarkBlocks measures kernels of other numbers of blocks than those of kernel.go.
func BenchmarkBlocks(b *testing.B) {
	for _, kind := range []device.Kind{device.DeviceToHost, device.HostToDevice} {
		for _, shape := range []struct{ length, blocks int }{{4 << 10, 256}, {64 << 10, 32}} {
			for _, number := range []uint{2, 4, 8, 16, 32} {
				b.Run(fmt.Sprintf("%v/%dKiBx%d/%d", kind, shape.length>>10, shape.blocks, number), func(b *testing.B) {
					cuda.SetBlocks(b, kind, number)
					benchmarkCopies(b, kind, device.Kernel, shape.length, shape.blocks)
				})
			}
		}
	}
}
