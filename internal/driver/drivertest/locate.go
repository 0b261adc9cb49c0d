package drivertest

import (
	"testing"

	"kvferry/core/device"

	"github.com/stretchr/testify/require"
)

// RequireOn has the runtime find memory on a device.
func RequireOn(t testing.TB, index int, r device.Runtime, addr uintptr, location string) {
	t.Helper()
	on, found, err := r.Locate(addr, location)
	require.NoError(t, err)
	require.True(t, found, "location %q", location)
	require.Equal(t, index, on, "location %q", location)
}

// RequireHost has it find that memory is on none.
func RequireHost(t testing.TB, r device.Runtime, addr uintptr, location string) {
	t.Helper()
	_, found, err := r.Locate(addr, location)
	require.NoError(t, err)
	require.False(t, found, "location %q", location)
}
