package core

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestNothingOfTheEngineGetsTheNumberOfAClosedStandardStream(t *testing.T) {
	var kept [3]int
	for stream := range kept {
		duplicate, err := unix.FcntlInt(uintptr(stream), unix.F_DUPFD_CLOEXEC, unix.Stderr+1)
		require.NoError(t, err)
		kept[stream] = duplicate
		require.NoError(t, unix.Close(stream))
	}
	guardStandardStreams()
	pair, made := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	for stream, duplicate := range kept {
		require.NoError(t, unix.Dup3(duplicate, stream, 0))
		require.NoError(t, unix.Close(duplicate))
	}
	require.NoError(t, made)
	for _, socket := range pair {
		require.Greater(t, socket, unix.Stderr)
		require.NoError(t, unix.Close(socket))
	}
}
