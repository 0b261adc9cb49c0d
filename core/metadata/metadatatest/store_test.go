package metadatatest

import (
	"context"
	"errors"
	"testing"

	"kvferry/core/metadata"
	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func descriptor(name string) func() *metadata.Descriptor {
	return func() *metadata.Descriptor {
		return &metadata.Descriptor{Name: name, Protocol: "tcp", DataPort: 15001, ProtoVersion: 2}
	}
}

func TestEnginesFindEachOtherInADirectory(t *testing.T) {
	ctx := context.Background()
	directory := NewDirectory()
	a, b := directory.Store(), directory.Store()
	require.NoError(t, a.Publish(ctx, "", descriptor("node1:15000")))

	found, err := b.Fetch(ctx, "node1:15000")
	require.NoError(t, err)
	assert.Equal(t, 15001, found.DataPort)
	at, err := b.HandshakeAddress(ctx, "node1:15000")
	require.NoError(t, err)
	assert.Equal(t, "node1:15000", at)
	directory.SetAddress("node1:15000", "10.0.0.1:7")
	at, err = b.HandshakeAddress(ctx, "node1:15000")
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.1:7", at)
	assert.Equal(t, 1, directory.Fetches("node1:15000"))

	require.NoError(t, b.Withdraw(ctx), "nothing was published")
	require.NoError(t, a.Withdraw(ctx))
	_, err = b.Fetch(ctx, "node1:15000")
	assert.Equal(t, status.Metadata, status.Of(err, status.OK))
	_, err = b.HandshakeAddress(ctx, "node1:15000")
	assert.Equal(t, status.Metadata, status.Of(err, status.OK))
}

func TestAnEngineDoesNotWithdrawItsSuccessor(t *testing.T) {
	ctx := context.Background()
	directory := NewDirectory()
	first, second := directory.Store(), directory.Store()
	require.NoError(t, first.Publish(ctx, "", descriptor("node1")))
	require.NoError(t, second.Publish(ctx, "", descriptor("node1")))
	require.NoError(t, first.Withdraw(ctx))
	_, err := first.Fetch(ctx, "node1")
	assert.NoError(t, err)
}

func TestFaultsReachTheCaller(t *testing.T) {
	ctx := context.Background()
	directory := NewDirectory()
	s := directory.Store()
	require.NoError(t, s.Publish(ctx, "", descriptor("node1")))
	broken := errors.New("broken")
	directory.SetFault(func(op Operation, segment string) error {
		if segment == "node1" {
			return broken
		}
		return nil
	})
	_, err := s.Fetch(ctx, "node1")
	assert.ErrorIs(t, err, broken)
	_, err = s.HandshakeAddress(ctx, "node1")
	assert.ErrorIs(t, err, broken)
	assert.ErrorIs(t, s.Withdraw(ctx), broken)
	assert.ErrorIs(t, s.Publish(ctx, "", descriptor("node1")), broken)

	directory.SetFault(nil)
	_, err = s.Fetch(ctx, "node1")
	assert.NoError(t, err)
}

func TestAnEndedContextFailsEveryOperation(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	s := NewDirectory().Store()
	cancel()
	assert.ErrorIs(t, s.Publish(ctx, "", descriptor("node1")), context.Canceled)
	_, err := s.Fetch(ctx, "node1")
	assert.ErrorIs(t, err, context.Canceled)
}
