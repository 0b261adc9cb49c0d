package client

import (
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"

	"github.com/stretchr/testify/require"
)

// putBacks is a source that counts what comes back.
type putBacks struct {
	source
	pieces int
}

func (s *putBacks) putBack(pieces []piece) { s.pieces += len(pieces) }

// packedAndPlain are a strided WRITE and a plain one.
func packedAndPlain() []piece {
	return []piece{{op: core.Write, strided: &strided{memory: hostmem.Strided{Count: 1}, axes: 1}}, {op: core.Write, length: 1}}
}

func TestWhatIsLeftToTheWriterIsInOneHandOnly(t *testing.T) {
	back := &putBacks{}
	l := &lane{source: back, wakeups: make(chan struct{}, 1)}
	rest := l.leavePacking(packedAndPlain())
	require.Len(t, rest, 1)
	require.Nil(t, rest[0].strided)
	require.Equal(t, 1, back.pieces)
	require.Equal(t, rest, l.inHand, "giveUpStuck settles these, and not the one that is queued again")
}

func TestPiecesOfALaneThatWasGivenUpAreNotQueuedOnceMore(t *testing.T) {
	back := &putBacks{}
	l := &lane{source: back, wakeups: make(chan struct{}, 1), stuck: &stuck{}}
	require.Empty(t, l.leavePacking(packedAndPlain()), "giveUpStuck has settled them")
	require.Zero(t, back.pieces)
	require.Empty(t, l.fetchGranted(packedAndPlain(), false), "giveUpStuck has not seen these")
	require.Equal(t, 2, back.pieces)
}
