package hostmem

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// randomStrided is strided memory within the first size bytes from base on, the runs of which do not overlap.
func randomStrided(base uintptr, size uint64) Strided {
	s := Strided{Run: []uint64{1, 3, 8, 16, 32, 64, 100, 256, 5000}[rand.IntN(9)], Count: rand.IntN(MaxAxes + 1)}
	extent := s.Run
	offset := uintptr(0)
	for i := s.Count - 1; i >= 0; i-- {
		stride := extent + uint64(rand.IntN(300))<<rand.IntN(6)
		most := (size - extent) / stride
		count := 1 + rand.Uint64N(min(most, 6)+1)
		s.Axes[i] = Axis{Count: count, Stride: int64(stride)}
		extent += (count - 1) * stride
		if rand.IntN(3) == 0 {
			offset += uintptr((count - 1) * stride)
			s.Axes[i].Stride = -int64(stride)
		}
	}
	s.Base = base + uintptr(rand.Uint64N(size-extent+1)) + offset
	return s
}

// places are the offsets of the bytes of a stream from base on, by the definition of Strided.
func (s *Strided) places(base uintptr) (all []int) {
	var walk func(axis int, at uintptr)
	walk = func(axis int, at uintptr) {
		if axis == s.Count {
			for i := range s.Run {
				all = append(all, int(at-base)+int(i))
			}
			return
		}
		for range s.Axes[axis].Count {
			walk(axis+1, at)
			at += uintptr(s.Axes[axis].Stride)
		}
	}
	walk(0, s.Base)
	return all
}

// stridedWays are what leads to each way in which runs are copied.
var stridedWays = map[string]func(*testing.T, []byte){
	"seen":        func(*testing.T, []byte) {},
	"first":       func(_ *testing.T, memory []byte) { Forget(AddressOf(memory), uint64(len(memory))) },
	"no handlers": func(t *testing.T, _ []byte) { withHandler(t, 1) },
	"forbidden": func(t *testing.T, _ []byte) {
		withHandler(t, 1)
		forbidden.Store(true)
		t.Cleanup(func() { forbidden.Store(false) })
	},
}

func TestRunsThatMayOverlapAreNotTakenForDisjoint(t *testing.T) {
	disjoint := 0
	for range 2000 {
		s := randomStrided(1<<20, 1<<16)
		require.True(t, s.IsDisjoint())
		for i := range s.Count {
			s.Axes[i].Stride = int64(rand.IntN(2000) - 1000)
		}
		all := s.places(1 << 20)
		slices.Sort(all)
		once := len(slices.Compact(all)) == int(s.Bytes())
		if s.IsDisjoint() {
			require.True(t, once)
			disjoint++
		}
	}
	require.Greater(t, disjoint, 100)
}

func TestPartsCutFromAStreamAreItsBytesInOrder(t *testing.T) {
	longest := 0
	for range 2000 {
		s := randomStrided(1<<20, 1<<16)
		all := s.places(0)
		for at := uint64(0); at < s.Bytes(); {
			most := 1 + rand.Uint64N(s.Bytes())
			part := s.Cut(at, most)
			length := part.Bytes()
			require.LessOrEqual(t, length, most)
			require.NotZero(t, length)
			require.Equal(t, all[at:at+length], part.places(0))
			longest = max(longest, part.Count)
			at += length
		}
		whole := s.Cut(0, s.Bytes())
		require.Equal(t, s.Bytes(), whole.Bytes(), "all of it is one part")
	}
	require.Equal(t, MaxAxes, longest)
}

func TestStridedMemoryIsGatheredAndScatteredByteForByte(t *testing.T) {
	for name, prepare := range stridedWays {
		t.Run(name, func(t *testing.T) {
			memory := mapped(t, 256<<10)
			fill(memory, 3)
			rounds := 150
			if name == "forbidden" {
				rounds = 10
			}
			prepare(t, memory)
			var c Copier
			for range rounds {
				if name == "first" {
					prepare(t, memory)
				}
				s := randomStrided(AddressOf(memory), uint64(len(memory)))
				places := s.places(AddressOf(memory))
				require.EqualValues(t, len(places), s.Bytes())
				low, length := s.Bounds()
				require.EqualValues(t, slices.Min(places), low-AddressOf(memory))
				require.EqualValues(t, slices.Max(places)+1, uint64(low-AddressOf(memory))+length)
				from := rand.IntN(len(places))
				until := from + 1 + rand.IntN(len(places)-from)

				got, want := make([]byte, until-from), make([]byte, until-from)
				for i, p := range places[from:until] {
					want[i] = memory[p]
				}
				require.NoError(t, c.Gather(got, &s, uint64(from)))
				require.True(t, bytes.Equal(want, got), "%+v from %d to %d", s, from, until)

				after := slices.Clone(memory)
				for i, p := range places[from:until] {
					got[i] = byte(rand.Uint32())
					after[p] = got[i]
				}
				require.NoError(t, c.Scatter(&s, uint64(from), got))
				require.True(t, bytes.Equal(after, memory), "%+v from %d to %d", s, from, until)
			}
		})
	}
}

func TestRunsThatFollowEachOtherAreMergedAndTheStreamStaysTheSame(t *testing.T) {
	const base = uintptr(1 << 20)
	for range 300 {
		s := randomStrided(base, 64<<10)
		extent := s.Run // some inner axes become dense
		for i := s.Count - 1; i >= s.Count/2; i-- {
			s.Axes[i].Stride = int64(extent)
			extent *= s.Axes[i].Count
		}
		places := s.places(base)
		s.Merge()
		require.Equal(t, places, s.places(base))
		require.True(t, s.Count == 0 || s.Axes[s.Count-1].Stride != int64(s.Run))
	}
}

func TestWithinAsksAboutEachRunOnlyWhereItHasTo(t *testing.T) {
	s := Strided{Base: 1000, Run: 10, Axes: [MaxAxes]Axis{{Count: 3, Stride: 1000}, {Count: 50, Stride: 20}}, Count: 2}
	asked := 0
	in := func(size uintptr) func(addr uintptr, length uint64) bool {
		asked = 0
		return func(addr uintptr, length uint64) bool {
			asked++
			return addr/size == (addr+uintptr(length)-1)/size
		}
	}
	require.True(t, s.Within(in(1<<20)))
	require.Equal(t, 1, asked)
	require.True(t, s.Within(in(1000)))
	require.Equal(t, 4, asked)
	require.True(t, s.Within(in(100)))
	require.False(t, s.Within(in(15)))
}

func TestStridedMemoryThatIsGoneIsAnError(t *testing.T) {
	memory := mapped(t, 8*page)
	s := Strided{Base: AddressOf(memory), Run: 16, Axes: [MaxAxes]Axis{{Count: 8, Stride: page}, {Count: 4, Stride: 64}}, Count: 2}
	buffer := make([]byte, s.Bytes())
	var c Copier
	require.NoError(t, c.Scatter(&s, 0, buffer))
	protect(t, memory[6*page:7*page], unix.PROT_NONE)
	require.ErrorIs(t, c.Scatter(&s, 0, buffer), syscall.EFAULT, "it was there a moment ago")
	require.ErrorIs(t, c.Gather(buffer, &s, 0), syscall.EFAULT)
	Forget(AddressOf(memory), uint64(len(memory)))
	require.ErrorIs(t, c.Scatter(&s, 0, buffer), syscall.EFAULT)
	require.NoError(t, c.Scatter(&s, 0, buffer[:6*64]), "what is there may be touched")
}

func TestStridedMemoryIsThereWhenItsPagesAre(t *testing.T) {
	memory := mapped(t, 64*page)
	Forget(AddressOf(memory), uint64(len(memory)))
	s := Strided{Base: AddressOf(memory), Run: 16, Axes: [MaxAxes]Axis{{Count: 64, Stride: page}}, Count: 1}
	require.False(t, s.There(Now(), Writing))
	var c Copier
	require.NoError(t, c.Scatter(&s, 0, make([]byte, s.Bytes())))
	require.True(t, s.There(Now(), Writing))
}

func BenchmarkStrided(b *testing.B) {
	for _, run := range []uint64{64, 256, 2048} {
		const bytes = 64 << 10
		memory := mapped(b, 8*bytes)
		s := Strided{Base: AddressOf(memory), Run: run, Axes: [MaxAxes]Axis{{Count: bytes / run, Stride: int64(8 * run)}}, Count: 1}
		buffer := make([]byte, bytes)
		var c Copier
		for name, f := range map[string]func() error{
			"gather":  func() error { return c.Gather(buffer, &s, 0) },
			"scatter": func() error { return c.Scatter(&s, 0, buffer) },
			"syscall": func() error {
				c.Renew()
				c.renewed()
				c.fresh, c.trusted = true, false
				slow := c.slow
				slow.access, slow.now, slow.count, slow.bytes = Writing, c.now, 0, 0
				if err := c.rows(&s, 0, buffer, slow); err != nil {
					return err
				}
				return slow.copy()
			},
		} {
			b.Run(fmt.Sprintf("%s/run=%d", name, run), func(b *testing.B) {
				require.NoError(b, c.Gather(buffer, &s, 0))
				b.SetBytes(bytes)
				for b.Loop() {
					if err := f(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func TestRunsByStrideAreTheSameRuns(t *testing.T) {
	s := Strided{Base: 5000, Run: 2, Count: 3, Axes: [MaxAxes]Axis{{Count: 3, Stride: 4}, {Count: 2, Stride: -1000}, {Count: 4, Stride: 100}}}
	sorted := s.ByStride()
	require.Equal(t, [MaxAxes]Axis{{Count: 2, Stride: -1000}, {Count: 4, Stride: 100}, {Count: 3, Stride: 4}}, sorted.Axes)
	require.ElementsMatch(t, slices.Collect(s.Runs()), slices.Collect(sorted.Runs()))
	require.Equal(t, int64(4), s.Axes[0].Stride)
}

func TestPagesBetweenRunsAreNotBroughtIn(t *testing.T) {
	const runs = 8
	run := uint64(pageSize)
	memory, err := unix.Mmap(-1, 0, int(2*runs*run), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(memory)) })
	require.NoError(t, unix.Madvise(memory, unix.MADV_NOHUGEPAGE))
	base := AddressOf(memory)
	s := Strided{Base: base, Run: run, Count: 1}
	s.Axes[0] = Axis{runs, int64(2 * run)}
	var c Copier
	require.NoError(t, c.Scatter(&s, 0, make([]byte, s.Bytes())))
	for i := range uintptr(runs) {
		require.True(t, Resident(base+2*i*pageSize, run), "run %d", i)
		require.False(t, Resident(base+(2*i+1)*pageSize, run), "gap %d", i)
	}
}

func TestRunsWithPagesBetweenThemAreCopiedWithoutAllocations(t *testing.T) {
	memory := mapped(t, 64*page)
	s := Strided{Base: AddressOf(memory), Run: 256, Count: 1}
	s.Axes[0] = Axis{32, 2 * page}
	buffer := make([]byte, s.Bytes())
	var c Copier
	require.NoError(t, c.Scatter(&s, 0, buffer))
	require.Zero(t, testing.AllocsPerRun(20, func() { require.NoError(t, c.Gather(buffer, &s, 0)) }))
}

func TestMergedStridedMemoryIsTheSameStreamInFewerRuns(t *testing.T) {
	for range 300 {
		s := randomStrided(1<<40, 1<<20)
		merged := s
		merged.Merge()
		require.True(t, slices.Equal(s.places(0), merged.places(0)), "%+v, merged: %+v", s, merged)
		require.LessOrEqual(t, merged.Count, s.Count)
	}
	heads := Strided{Base: 1 << 40, Run: 256, Count: 4}
	heads.Axes = [MaxAxes]Axis{{4, 1 << 20}, {3, 16 << 10}, {1, 7}, {16, 256}}
	heads.Merge()
	want := Strided{Base: 1 << 40, Run: 4096, Count: 2, Axes: [MaxAxes]Axis{{4, 1 << 20}, {3, 16 << 10}}}
	require.Equal(t, want, heads)
	beside := Strided{Base: 1 << 40, Run: 8, Count: 2, Axes: [MaxAxes]Axis{{4, 64}, {4, 16}}}
	beside.Merge()
	require.Equal(t, Strided{Base: 1 << 40, Run: 8, Count: 1, Axes: [MaxAxes]Axis{{16, 16}}}, beside)
}
