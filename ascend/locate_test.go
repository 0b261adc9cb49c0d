package ascend_test

import (
	"testing"

	"kvferry/ascend"
	"kvferry/core/status"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

func TestEveryKindOfMemoryHasItsPlace(t *testing.T) {
	const host, onDevice, unregistered, managed, hostNUMA, later = 0, 1, 2, 3, 4, 5
	for _, named := range []int{-1, 0, 3} {
		index, found, err := ascend.Decide(onDevice, 2, named)
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, 2, index)
		for _, kind := range []int{host, unregistered, managed, hostNUMA} {
			_, found, err := ascend.Decide(kind, 2, named)
			require.NoError(t, err)
			require.False(t, found)
		}
	}

	index, found, err := ascend.Decide(later, 2, 3)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, 3, index, "as its owner says")
	_, _, err = ascend.Decide(later, 2, -1)
	require.Equal(t, status.NotSupportedTransport, status.Of(err, status.OK))
	require.ErrorContains(t, err, "type 5")
}

func TestWhereTheLibraryCannotSayTheLocationIsBelieved(t *testing.T) {
	believed := func(t *testing.T, addr uintptr) {
		r := simulated(t)
		drivertest.RequireOn(t, 1, r, addr, "npu:1")
		drivertest.RequireHost(t, r, addr, "*")
		drivertest.RequireHost(t, r, addr, "cpu:0")
		_, _, err := r.Locate(addr, "npu:2")
		require.ErrorContains(t, err, "this process has 2 NPUs")
	}
	t.Run("as it has no such call", func(t *testing.T) {
		simtest.Use(t, simtest.OlderCANN)
		simtest.NoLeaks(t)
		believed(t, simtest.NewDevice(t, 1).Alloc(64))
	})
	t.Run("as the call needs a device that cannot be set", func(t *testing.T) {
		simtest.NoLeaks(t)
		addr := simtest.NewDevice(t, 1).Alloc(64)
		simtest.Faults(t, "aclrtPointerGetAttributes:1=107002+,aclrtSetDevice:1+")
		believed(t, addr)
	})
}

func TestALibraryThatAnswersOnlyWithACurrentDeviceIsAskedWithOne(t *testing.T) {
	simtest.NoLeaks(t)
	r := simulated(t)
	addr := simtest.NewDevice(t, 1).Alloc(64)
	for _, location := range []string{"*", "npu:1"} {
		simtest.ResetCounters(t)
		simtest.Faults(t, "aclrtPointerGetAttributes:1=107002")
		drivertest.RequireOn(t, 1, r, addr, location)
		calls := simtest.TakeReport(t).Calls
		require.EqualValues(t, 1, calls["aclrtSetDevice"])
		require.EqualValues(t, 1, calls["aclrtResetDevice"])
	}
}

func TestTheApplicationsCurrentDeviceIsUntouchedWhereOneIsNeededToAsk(t *testing.T) {
	simtest.NoLeaks(t)
	app, other := simtest.NewDevice(t, 1), simtest.NewDevice(t, 0)
	addr := other.Alloc(64)
	r := simulated(t)
	use := func() {
		drivertest.RequireOn(t, 0, r, addr, "*")
		drivertest.RequireOn(t, 0, r, addr, "npu:0")
		_, err := r.Open(0)
		require.NoError(t, err)
	}
	simtest.Faults(t, "aclrtPointerGetAttributes:1=107002")
	app.Do(func() {
		use()
		index, set := simtest.CurrentDevice(t)
		require.True(t, set)
		require.Equal(t, 1, index)
	})
	simtest.Faults(t, "aclrtPointerGetAttributes:1=107002")
	drivertest.Locked(func() {
		use()
		_, set := simtest.CurrentDevice(t)
		require.False(t, set, "on a thread that has set none")
	})
}
