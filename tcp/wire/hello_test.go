package wire

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAHelloIsReadAsItWasWritten(t *testing.T) {
	want := Hello{Origin: Identity{1, 2}, Number: 3, Target: Identity{4, 15: 5}, Ends: 6, PermitAt: 7}
	b := want.Encode()
	require.Len(t, b, HelloSize)
	require.True(t, IsHello(b))
	rest, err := HelloRest(b)
	require.NoError(t, err)
	require.Equal(t, HelloBody, rest)
	got, err := ParseHello(b[HeaderSize:])
	require.NoError(t, err)
	require.Equal(t, want, got)

	answer := Answer{Code: StatusNotEnded, Target: Identity{8}, Flags: 9, Age: time.Hour}
	read, err := ReadAnswer(bytes.NewReader(answer.Encode()))
	require.NoError(t, err)
	require.Equal(t, answer, read)
}

// An engine that knows no hello takes one for a request of no bytes, which touches no memory.
func TestAHelloIsARequestOfNoBytesToOthers(t *testing.T) {
	h := Hello{Number: 1}
	b := h.Encode()
	require.Equal(t, make([]byte, 8), b[:8])
	require.NotZero(t, b[16]&ProtoV2)
	require.Equal(t, Identity{}.String(), ParseIdentity(Identity{}.String()).String())
}

func FuzzHello(f *testing.F) {
	f.Add((&Hello{Number: 1, Target: Identity{2}}).Encode())
	f.Add((&Answer{Code: 1}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ReadAnswer(bytes.NewReader(b))
		if len(b) < HeaderSize || !IsHello(b) {
			return
		}
		rest, err := HelloRest(b)
		if err != nil || len(b) < HeaderSize+rest {
			return
		}
		h, err := ParseHello(b[HeaderSize : HeaderSize+rest])
		if err == nil {
			require.Equal(t, b[HeaderSize:HelloSize], h.Encode()[HeaderSize:])
		}
	})
}
