package core

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// givenUp owns works that are given up.
type givenUp struct{ owner }

var errGivenUp = errors.New("given up")

func (givenUp) aborted() error { return errGivenUp }

func TestAChunkThatIsGivenUpCopiesNoFurtherShares(t *testing.T) {
	p := chunk{queue: &stagedQueue{route: stagedRoute{opcode: Write}}, parent: &Work{owner: givenUp{}}, shares: make([]share, 3)}
	ended := false
	p.copyShares(1, func() { ended = true }) // there is no device to copy
	require.True(t, ended)
	require.NoError(t, p.shares[0].err)
	for _, s := range p.shares[1:] {
		require.ErrorIs(t, s.err, errGivenUp)
	}
}
