package wire

import (
	"math"
	"math/big"
	"testing"

	"github.com/stretchr/testify/require"
)

func stridedFrame(op Opcode, addr, length uint64, s Strided, axes int) []byte {
	b := make([]byte, HeaderSize+StridedBody(axes))
	PutStrided(b, op, addr, length, &s, axes)
	return b
}

func TestAStridedRequestIsParsedAsItWasPut(t *testing.T) {
	want := Strided{Key: Key{1, 15: 2}, ID: 1<<63 + 9, Run: 256, Axes: [MaxAxes]Axis{{4, -4096}, {1, -1 << 63}, {8, 512}}}
	for _, op := range []Opcode{Read, Write} {
		b := stridedFrame(op, 1<<40, 256*32, want, 3)
		h, err := ParseHeader(b, false)
		require.NoError(t, err)
		require.Equal(t, Header{Op: op, V2: true, Addr: 1 << 40, Length: 256 * 32, Strided: true, Axes: 3}, h)
		got, low, span, err := h.ParseStrided(b[HeaderSize:])
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.EqualValues(t, 1<<40-3*4096, low)
		require.EqualValues(t, 3*4096+7*512+256, span)
	}
}

func TestAStridedRequestWithAFaultIsRefused(t *testing.T) {
	const top = math.MaxUint64
	for name, test := range map[string]struct {
		addr, length uint64
		run          uint64
		axes         []Axis
	}{
		"nothing":                  {4096, 0, 0, nil},
		"no times":                 {4096, 0, 8, []Axis{{0, 8}}},
		"another size":             {4096, 65, 8, []Axis{{8, 8}}},
		"another size of a run":    {4096, 9, 8, nil},
		"too many bytes":           {4096, MaxStrided + 8, 8, []Axis{{MaxStrided/8 + 1, 8}}},
		"count beyond 64 bits":     {4096, 16, 8, []Axis{{1 << 62, 8}, {1 << 3, 8}}},
		"strides beyond 64 bits":   {4096, 64, 8, []Axis{{2, math.MaxInt64}, {2, math.MaxInt64}, {2, math.MaxInt64}}},
		"the end of all addresses": {top - 15, 32, 8, []Axis{{4, 8}}},
		"below 0":                  {4096, 32, 8, []Axis{{4, -4096}}},
		"the most negative stride": {4096, 16, 8, []Axis{{2, math.MinInt64}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := Strided{Run: test.run}
			copy(s.Axes[:], test.axes)
			b := stridedFrame(Write, test.addr, test.length, s, len(test.axes))
			h, err := ParseHeader(b, false)
			require.NoError(t, err)
			_, _, _, err = h.ParseStrided(b[HeaderSize:])
			require.Error(t, err)
		})
	}
	b := stridedFrame(Read, 1, 1, Strided{Run: 1}, 0)
	b[17] = MaxAxes + 1
	_, err := ParseHeader(b, false)
	require.ErrorContains(t, err, "6 axes")
	b[17], b[16] = 0, strided|byte(Read)
	_, err = ParseHeader(b, false)
	require.Error(t, err, "version 1 has none")
}

// FuzzParseStrided compares the bounds of what is accepted with those that big integers give.
func FuzzParseStrided(f *testing.F) {
	s := Strided{Key: Key{1}, Run: 16, Axes: [MaxAxes]Axis{{4, -4096}, {8, 512}}}
	f.Add(stridedFrame(Write, 1<<40, 512, s, 2))
	f.Add(stridedFrame(Read, 1<<20, 16, s, 0))
	s.Axes = [MaxAxes]Axis{{1, 1}, {2, math.MinInt64}, {2, math.MaxInt64}, {1 << 32, 0}, {1 << 31, 7}}
	f.Add(stridedFrame(Read, 1<<63, 1<<20, s, 5))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize+MaxStridedBody {
			return
		}
		h, err := ParseHeader(b, false)
		if err != nil || !h.Strided {
			return
		}
		got, low, span, err := h.ParseStrided(b[HeaderSize:])
		if err != nil {
			return
		}
		bytes, lowest := new(big.Int).SetUint64(got.Run), new(big.Int).SetUint64(h.Addr)
		highest := new(big.Int).Add(lowest, bytes)
		for _, a := range got.Axes[:h.Axes] {
			count := new(big.Int).SetUint64(a.Count)
			bytes.Mul(bytes, count)
			reach := new(big.Int).Mul(count.Sub(count, big.NewInt(1)), big.NewInt(a.Stride))
			if reach.Sign() < 0 {
				lowest.Add(lowest, reach)
			} else {
				highest.Add(highest, reach)
			}
		}
		require.True(t, bytes.IsUint64() && bytes.Uint64() == h.Length && h.Length > 0)
		require.True(t, h.Axes == 0 || h.Length <= MaxStrided)
		require.True(t, lowest.Sign() >= 0 && lowest.IsUint64() && lowest.Uint64() == low)
		require.True(t, highest.IsUint64(), "nothing lies beyond the address space")
		require.Equal(t, highest.Uint64(), low+span)
		again := stridedFrame(h.Op, h.Addr, h.Length, got, h.Axes)
		require.Equal(t, b[HeaderSize:len(again)], again[HeaderSize:])
	})
}
