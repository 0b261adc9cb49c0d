package drivertest

import (
	"testing"

	"kvferry/core/device"

	"github.com/stretchr/testify/require"
)

// RequireOn fails unless the runtime finds memory on the device.
func RequireOn(t testing.TB, index int, r device.Runtime, addr uintptr, location string) {
	t.Helper()
	on, found, err := r.Locate(addr, location)
	require.NoError(t, err)
	require.True(t, found, "location %q", location)
	require.Equal(t, index, on, "location %q", location)
}

// RequireHost fails if the runtime finds memory on a device.
func RequireHost(t testing.TB, r device.Runtime, addr uintptr, location string) {
	t.Helper()
	_, found, err := r.Locate(addr, location)
	require.NoError(t, err)
	require.False(t, found, "location %q", location)
}
