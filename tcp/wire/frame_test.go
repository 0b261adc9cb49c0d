package wire

import (
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHeaderHasTheBytesThatMooncakeExpects(t *testing.T) {
	b := make([]byte, HeaderSize)
	for i := range b {
		b[i] = 0xEE
	}
	PutHeader(b, Write, 0x1122334455667788, 0x0A0B0C0D, true)
	require.Equal(t, "0d0c0b0a00000000"+"8877665544332211"+"8100000000000000", hex.EncodeToString(b))
	PutHeader(b, Read, 1, 2, false)
	require.Equal(t, "0200000000000000"+"0100000000000000"+"0000000000000000", hex.EncodeToString(b))
}

func TestHeaderIsParsedAsItWasPutWhateverThePadding(t *testing.T) {
	b := make([]byte, HeaderSize)
	for _, op := range []Opcode{Read, Write} {
		for _, v2 := range []bool{false, true} {
			want := Header{Op: op, V2: v2, Addr: 1<<63 + 5, Length: 1<<62 + 7}
			PutHeader(b, want.Op, want.Addr, want.Length, want.V2)
			copy(b[17:], "garbage")
			got, err := ParseHeader(b, false)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
	}
}

func TestUnknownOpcodeIsAnErrorThatShowsTheHeader(t *testing.T) {
	b := make([]byte, HeaderSize)
	b[0] = 0xAB
	for _, code := range []byte{2, 0x7F, 0x82, 0xFF} {
		b[16] = code
		_, err := ParseHeader(b, false)
		require.ErrorContains(t, err, "ab 00 00")
	}
}

func TestStatusHasTheBytesThatMooncakeExpects(t *testing.T) {
	b := make([]byte, StatusSize)
	PutStatus(b, StatusRejected)
	require.Equal(t, "010000005654434d", hex.EncodeToString(b))
	code, err := ParseStatus(b)
	require.NoError(t, err)
	require.EqualValues(t, StatusRejected, code)
}

func TestStatusWithBadMagicIsAnError(t *testing.T) {
	b := make([]byte, StatusSize)
	PutStatus(b, StatusOK)
	b[7] ^= 1
	_, err := ParseStatus(b)
	require.ErrorContains(t, err, "4c")
}

func TestOnlyAPeerOnTheSameHostSendsRequestsByAddress(t *testing.T) {
	b := make([]byte, HeaderSize)
	for _, want := range []Header{
		{Op: Write, V2: true, Addr: 1<<63 + 5, Length: 1 << 62, ByAddress: true, Source: MaxSource - 2},
		{Op: Read, V2: true, Addr: 7, Length: 1, ByAddress: true},
	} {
		PutHeaderByAddress(b, want.Op, want.Addr, want.Length, max(want.Source, 4096))
		got, err := ParseHeader(b, true)
		require.NoError(t, err)
		require.Equal(t, want, got)
		_, err = ParseHeader(b, false)
		require.Error(t, err)
	}
	b[16] = byAddress | byte(Write)
	_, err := ParseHeader(b, true)
	require.Error(t, err, "version 1 has none")
}

func TestGrantIsParsedAsItWasPut(t *testing.T) {
	b := make([]byte, GrantSize)
	want := Grant{Addr: 1 << 40, Length: 3, EpochAt: 1<<47 - 8, Epoch: 1<<64 - 1}
	PutGrant(b, want)
	require.Equal(t, want, ParseGrant(b))
}

func TestAGrantHoldsWhatLiesWithinItsRegion(t *testing.T) {
	g := Grant{Addr: 100, Length: 10}
	for _, in := range [][2]uint64{{100, 10}, {100, 1}, {109, 1}} {
		require.True(t, g.Holds(in[0], in[1]), in)
	}
	for _, out := range [][2]uint64{{99, 2}, {100, 11}, {109, 2}, {110, 1}, {105, 0}, {105, 1<<64 - 1}, {1<<64 - 1, 2}} {
		require.False(t, g.Holds(out[0], out[1]), out)
	}
}

func FuzzParseHeader(f *testing.F) {
	b := make([]byte, HeaderSize)
	PutHeader(b, Write, 4096, 1, true)
	f.Add(b, true)
	PutHeaderByAddress(b, Write, 4096, 1, 1<<40)
	f.Add(b, true)
	f.Add(b, false)
	f.Add(stridedFrame(Write, 4096, 1, Strided{Run: 1}, MaxAxes), false)
	f.Fuzz(func(t *testing.T, b []byte, sameHost bool) {
		if len(b) < HeaderSize {
			return
		}
		h, err := ParseHeader(b, sameHost)
		if err != nil {
			return
		}
		again, written := make([]byte, HeaderSize+MaxStridedBody), 17 // bytes: the others of a header have no meaning
		switch {
		case h.ByAddress:
			require.True(t, sameHost)
			PutHeaderByAddress(again, h.Op, h.Addr, h.Length, h.Source)
		case h.Strided:
			PutStrided(again, h.Op, h.Addr, h.Length, &Strided{}, h.Axes)
			written = 18
		default:
			PutHeader(again, h.Op, h.Addr, h.Length, h.V2)
		}
		require.Equal(t, b[:written], again[:written])
	})
}
