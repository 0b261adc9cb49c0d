package tcp

import (
	"encoding/hex"
	"testing"

	"kvferry/core"

	"github.com/stretchr/testify/require"
)

func TestHeaderHasTheBytesThatMooncakeExpects(t *testing.T) {
	b := make([]byte, headerSize)
	for i := range b {
		b[i] = 0xEE
	}
	putHeader(b, core.Write, 0x1122334455667788, 0x0A0B0C0D, true)
	require.Equal(t, "0d0c0b0a00000000"+"8877665544332211"+"8100000000000000", hex.EncodeToString(b))
	putHeader(b, core.Read, 1, 2, false)
	require.Equal(t, "0200000000000000"+"0100000000000000"+"0000000000000000", hex.EncodeToString(b))
}

func TestHeaderIsParsedAsItWasPutWhateverThePadding(t *testing.T) {
	b := make([]byte, headerSize)
	for _, op := range []core.Opcode{core.Read, core.Write} {
		for _, v2 := range []bool{false, true} {
			want := header{op: op, v2: v2, addr: 1<<63 + 5, length: 1<<62 + 7}
			putHeader(b, want.op, want.addr, want.length, want.v2)
			copy(b[17:], "garbage")
			got, err := parseHeader(b, false)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
	}
}

func TestUnknownOpcodeIsAnErrorThatShowsTheHeader(t *testing.T) {
	b := make([]byte, headerSize)
	b[0] = 0xAB
	for _, code := range []byte{2, 0x7F, 0x82, 0xFF} {
		b[16] = code
		_, err := parseHeader(b, false)
		require.ErrorContains(t, err, "ab 00 00")
	}
}

func TestStatusHasTheBytesThatMooncakeExpects(t *testing.T) {
	b := make([]byte, statusSize)
	putStatus(b, statusRejected)
	require.Equal(t, "010000005654434d", hex.EncodeToString(b))
	code, err := parseStatus(b)
	require.NoError(t, err)
	require.EqualValues(t, statusRejected, code)
}

func TestStatusWithBadMagicIsAnError(t *testing.T) {
	b := make([]byte, statusSize)
	putStatus(b, statusOK)
	b[7] ^= 1
	_, err := parseStatus(b)
	require.ErrorContains(t, err, "4c")
}

func TestOnlyANeighbourSendsRequestsByAddress(t *testing.T) {
	b := make([]byte, headerSize)
	for _, p := range []piece{
		{op: core.Write, local: maxSource - 2, remote: 1<<63 + 5, length: 1 << 62},
		{op: core.Read, local: 4096, remote: 7, length: 1},
	} {
		putHeaderByAddress(b, &p)
		got, err := parseHeader(b, true)
		require.NoError(t, err)
		want := header{op: p.op, v2: true, addr: p.remote, length: p.length, byAddress: true}
		if p.op == core.Write {
			want.source = uint64(p.local)
		}
		require.Equal(t, want, got)
		_, err = parseHeader(b, false)
		require.Error(t, err)
	}
	b[16] = byAddress | byte(opWrite)
	_, err := parseHeader(b, true)
	require.Error(t, err, "version 1 has none")
}

func TestGrantIsParsedAsItWasPut(t *testing.T) {
	b := make([]byte, grantSize)
	want := grant{addr: 1 << 40, length: 3, epochAt: 1<<47 - 8, epoch: 1<<64 - 1}
	putGrant(b, want)
	require.Equal(t, want, parseGrant(b))
}

func TestAGrantHoldsWhatLiesWithinItsRegion(t *testing.T) {
	g := grant{addr: 100, length: 10}
	for _, in := range [][2]uint64{{100, 10}, {100, 1}, {109, 1}} {
		require.True(t, g.holds(in[0], in[1]), in)
	}
	for _, out := range [][2]uint64{{99, 2}, {100, 11}, {109, 2}, {110, 1}, {105, 0}, {105, 1<<64 - 1}, {1<<64 - 1, 2}} {
		require.False(t, g.holds(out[0], out[1]), out)
	}
}

func FuzzParseHeader(f *testing.F) {
	b := make([]byte, headerSize)
	putHeader(b, core.Write, 4096, 1, true)
	f.Add(b, true)
	putHeaderByAddress(b, &piece{op: core.Write, local: 1 << 40, remote: 4096, length: 1})
	f.Add(b, true)
	f.Add(b, false)
	f.Fuzz(func(t *testing.T, b []byte, neighbour bool) {
		if len(b) < headerSize {
			return
		}
		h, err := parseHeader(b, neighbour)
		if err != nil {
			return
		}
		again := make([]byte, headerSize)
		if h.byAddress {
			require.True(t, neighbour)
			putHeaderByAddress(again, &piece{op: h.op, local: uintptr(h.source), remote: h.addr, length: h.length})
		} else {
			putHeader(again, h.op, h.addr, h.length, h.v2)
		}
		require.Equal(t, b[:17], again[:17])
	})
}
