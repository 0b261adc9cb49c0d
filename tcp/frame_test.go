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
			got, err := parseHeader(b)
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
		_, err := parseHeader(b)
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

func FuzzParseHeader(f *testing.F) {
	b := make([]byte, headerSize)
	putHeader(b, core.Write, 4096, 1, true)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerSize {
			return
		}
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		again := make([]byte, headerSize)
		putHeader(again, h.op, h.addr, h.length, h.v2)
		require.Equal(t, b[:17], again[:17])
	})
}
