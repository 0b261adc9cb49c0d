package client

import (
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/sockio"

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

// headsOf is 32 runs of 512 bytes, so many bytes apart, which a WRITE moves to places that are apart.
func headsOf(stride int64) piece {
	local := hostmem.Strided{Base: 1 << 40, Run: 512, Count: 2}
	local.Axes = [hostmem.MaxAxes]hostmem.Axis{{Count: 2, Stride: 1 << 20}, {Count: 16, Stride: stride}}
	remote := local
	remote.Axes[1].Stride = 1024
	return piece{op: core.Write, length: local.Bytes(), strided: newStrided(&core.Work{}, local, remote)}
}

func TestRunsOfAWriteThatLieTogetherAreSentFromWhereTheyAre(t *testing.T) {
	l := &lane{}
	together := headsOf(512)
	require.False(t, together.isPacked())
	l.layOutPayload(&together)
	require.Equal(t, []sockio.Vector{{Base: 1 << 40, Length: 8192}, {Base: 1<<40 + 1<<20, Length: 8192}}, l.vectors)
	apart := headsOf(1024)
	require.True(t, apart.isPacked())
}
