package status_test

import (
	"errors"
	"fmt"
	"testing"

	"kvferry/core/status"

	"github.com/stretchr/testify/require"
)

func TestACodeIsFoundThroughWrappedErrors(t *testing.T) {
	inner := errors.New("connection refused")
	err := fmt.Errorf("batch 7: %w", status.Errorf(status.Socket, "peer: %w", inner))
	require.Equal(t, status.Socket, status.Of(err, status.Context))
	require.ErrorIs(t, err, inner)
	require.Equal(t, "batch 7: peer: connection refused", err.Error())
}

func TestAnErrorWithoutACodeHasTheFallback(t *testing.T) {
	require.Equal(t, status.Endpoint, status.Of(errors.New("x"), status.Endpoint))
	require.Equal(t, status.OK, status.Of(nil, status.Endpoint))
}

func TestGuardTurnsAPanicIntoAnError(t *testing.T) {
	err := status.Guard(func() error { panic("index out of range") })
	require.Equal(t, status.Context, status.Of(err, status.OK))
	require.ErrorContains(t, err, "index out of range")
	require.ErrorContains(t, err, "status_test.go", "the stack says where")
	require.NoError(t, status.Guard(func() error { return nil }))
}
