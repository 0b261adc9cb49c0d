package hostmem

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// linesOf is strided memory whose runs are whole cache lines, or are not for want of one byte.
func linesOf(base uintptr, r *rand.Rand) Strided {
	s := Strided{Base: base + uintptr(lineSize*r.Uint64N(8)), Run: lineSize * (1 + r.Uint64N(80)), Count: 2}
	step := s.Run + lineSize*r.Uint64N(100)
	s.Axes[0], s.Axes[1] = Axis{1 + r.Uint64N(3), int64(8 * step)}, Axis{1 + r.Uint64N(7), int64(step)}
	switch r.IntN(6) {
	case 0:
		s.Base++
	case 1:
		s.Run--
	case 2:
		s.Axes[1].Stride++
	}
	if r.IntN(3) == 0 {
		s.Base += uintptr((s.Axes[1].Count - 1) * step)
		s.Axes[1].Stride = -int64(step)
	}
	return s
}

func TestRunsOfWholeLinesAreScatteredByteForByte(t *testing.T) {
	memory := mapped(t, 512<<10)
	fill(memory, 3)
	r := rand.New(rand.NewPCG(5, 1))
	buffer := make([]byte, 512<<10)
	var c Copier
	for range 400 {
		s := linesOf(AddressOf(memory), r)
		payload := buffer[r.IntN(64):][:s.Bytes()]
		places, after := s.places(AddressOf(memory)), slices.Clone(memory)
		for i, p := range places {
			payload[i] = byte(r.Uint32())
			after[p] = payload[i]
		}
		cut := r.Uint64N(s.Bytes())
		require.NoError(t, c.Scatter(&s, 0, payload[:cut]))
		require.NoError(t, c.Scatter(&s, cut, payload[cut:]))
		require.True(t, bytes.Equal(after, memory), "%+v, cut at %d", s, cut)
	}
}

func TestRunsOfWholeLinesInMemoryThatIsGoneAreAnError(t *testing.T) {
	memory := mapped(t, 8*page)
	s := Strided{Base: AddressOf(memory), Run: 256, Count: 1}
	s.Axes[0] = Axis{8 * page / 512, 512}
	payload := make([]byte, s.Bytes())
	var c Copier
	require.NoError(t, c.Scatter(&s, 0, payload))
	fill(payload, 7)
	protect(t, memory[6*page:7*page], unix.PROT_NONE)
	require.ErrorIs(t, c.Scatter(&s, 0, payload), syscall.EFAULT, "it was there a moment ago")
	protect(t, memory[6*page:7*page], unix.PROT_READ)
	require.ErrorIs(t, c.Scatter(&s, 0, payload), syscall.EFAULT)
}
