package ascend_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"kvferry/ascend"
	"kvferry/core/status"
	"kvferry/internal/dl"
	"kvferry/internal/driver"
	"kvferry/sim/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

var hostMemory = make([]byte, 4096)

// where is what Locate answers, and must answer without an error.
func where(t *testing.T, r *driver.Runtime, addr uintptr, location string) (index int, found bool) {
	t.Helper()
	index, found, err := r.Locate(addr, location)
	require.NoError(t, err)
	return index, found
}

func requireOn(t *testing.T, device int, r *driver.Runtime, addr uintptr, location string) {
	t.Helper()
	index, found := where(t, r, addr, location)
	require.True(t, found, "location %q", location)
	require.Equal(t, device, index, "location %q", location)
}

func requireHost(t *testing.T, r *driver.Runtime, addr uintptr, location string) {
	t.Helper()
	_, found := where(t, r, addr, location)
	require.False(t, found, "location %q", location)
}

func TestMemoryIsWhereTheLibrarySaysWhateverItsLocation(t *testing.T) {
	simtest.NoLeaks(t)
	r, logs := logged(simtest.Library(t))
	for index := range 2 {
		addr := simtest.NewDevice(t, index).Alloc(4096)
		for _, location := range []string{"*", "", "cpu:0", "cuda:3"} {
			requireOn(t, index, r, addr, location)
			requireOn(t, index, r, addr+4095, location)
		}
	}
	requireHost(t, r, addressOf(hostMemory), "*")
	require.Zero(t, logs.Len())
}

func TestPageLockedMemoryIsTheHosts(t *testing.T) {
	simtest.NoLeaks(t)
	r, _ := logged(simtest.Library(t))
	d := open(t, 0)
	onThread(t, d, func() {
		memory, release := pinned(t, d, 4096)
		defer release()
		requireHost(t, r, addressOf(memory), "*")
	})
}

func TestALocationThatIsWrongIsLogged(t *testing.T) {
	simtest.NoLeaks(t)
	r, logs := logged(simtest.Library(t))
	addr := simtest.NewDevice(t, 0).Alloc(64)
	requireOn(t, 0, r, addr, "npu:0")
	require.Zero(t, logs.Len())

	requireOn(t, 0, r, addr, "npu:1")
	entry := logs.TakeAll()[0]
	require.Equal(t, "npu:1", entry.ContextMap()["said"])
	require.Equal(t, "npu:0", entry.ContextMap()["is"])

	requireHost(t, r, addressOf(hostMemory), "npu:0")
	require.Equal(t, "not an NPU's (type 2)", logs.TakeAll()[0].ContextMap()["is"])
}

func TestMalformedLocationsAreRefused(t *testing.T) {
	r, _ := logged("/nowhere/libascendcl.so")
	for _, location := range []string{"npu", "npu:", "npu:x", "npu:-1", "npu:+1", "npu:1:2", "npu1", "npu: 1", "npu:99999999999"} {
		_, _, err := r.Locate(addressOf(hostMemory), location)
		require.Equal(t, status.InvalidArgument, status.Of(err, status.OK), location)
		require.ErrorContains(t, err, location)
	}
}

func TestALocationOnADeviceThatIsNotThereIsRefused(t *testing.T) {
	r, _ := logged(simtest.Library(t))
	_, _, err := r.Locate(addressOf(hostMemory), "npu:99")
	require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
	require.ErrorContains(t, err, "there is no npu:99: this process has 2 NPUs")
}

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
		r, _ := logged(simtest.Library(t))
		requireOn(t, 1, r, addr, "npu:1")
		requireHost(t, r, addr, "*")
		requireHost(t, r, addr, "cpu:0")
		_, _, err := r.Locate(addr, "npu:2")
		require.ErrorContains(t, err, "this process has 2 NPUs")
	}
	t.Run("as it has no such call", func(t *testing.T) {
		simtest.Use(t, simtest.OlderCANN)
		simtest.NoLeaks(t)
		believed(t, simtest.NewDevice(t, 1).Alloc(64))
	})
	t.Run("as the call fails", func(t *testing.T) {
		simtest.NoLeaks(t)
		addr := simtest.NewDevice(t, 1).Alloc(64)
		simtest.Faults(t, "aclrtPointerGetAttributes:1+")
		believed(t, addr)
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
	r, _ := logged(simtest.Library(t))
	addr := simtest.NewDevice(t, 1).Alloc(64)
	for _, location := range []string{"*", "npu:1"} {
		simtest.ResetCounters(t)
		simtest.Faults(t, "aclrtPointerGetAttributes:1=107002")
		requireOn(t, 1, r, addr, location)
		calls := simtest.TakeReport(t).Calls
		require.EqualValues(t, 1, calls["aclrtSetDevice"])
		require.EqualValues(t, 1, calls["aclrtResetDevice"])
	}
}

func TestWithoutALibraryAllMemoryIsTheHosts(t *testing.T) {
	if !fresh(t) {
		return
	}
	r, logs := logged("")
	requireHost(t, r, addressOf(hostMemory), "*")
	require.Zero(t, logs.Len())
	_, _, err := r.Locate(addressOf(hostMemory), "npu:0")
	require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
	require.ErrorContains(t, err, "memory on npu:0: AscendCL was not found")
}

func TestALibraryThatCannotBeOpenedIsLoggedOnceAndFailsOnlyWhoNamesADevice(t *testing.T) {
	r, logs := logged("/nowhere/libascendcl.so")
	requireHost(t, r, addressOf(hostMemory), "*")
	requireHost(t, r, addressOf(hostMemory), "cpu:0")
	require.Equal(t, 1, logs.Len())
	_, _, err := r.Locate(addressOf(hostMemory), "npu:0")
	require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
	require.ErrorContains(t, err, "KVFERRY_ASCENDCL is /nowhere/libascendcl.so")
}

func TestTheApplicationsLibraryIsUsedWithoutBeingAskedForAndNotInitialised(t *testing.T) {
	if !fresh(t) {
		return
	}
	r, _ := logged("")
	requireHost(t, r, addressOf(hostMemory), "*")

	_, err := dl.Open(os.Getenv(libraryOf))
	require.NoError(t, err)
	requireHost(t, r, addressOf(hostMemory), "*")
	calls := simtest.TakeReport(t).Calls
	require.EqualValues(t, 1, calls["aclrtPointerGetAttributes"])
	require.Zero(t, calls["aclInit"])

	app := simtest.NewDevice(t, 1)
	requireOn(t, 1, r, app.Alloc(64), "*")
}

func TestALibraryOfTheApplicationsThatIsTooOldIsNoErrorForHostMemory(t *testing.T) {
	if !fresh(t) {
		return
	}
	old := filepath.Join(t.TempDir(), "libascendcl.so")
	output, err := exec.Command("cc", "-shared", "-Wl,-soname,libascendcl.so", "-x", "c", os.DevNull, "-o", old).CombinedOutput()
	require.NoError(t, err, "%s", output)
	_, err = dl.Open(old)
	require.NoError(t, err)

	r, logs := logged("")
	requireHost(t, r, addressOf(hostMemory), "*")
	require.Zero(t, logs.Len())
	require.ErrorContains(t, r.Require(), "by the loader: it has no function aclInit")
}

func TestTheApplicationsCurrentDeviceIsUntouched(t *testing.T) {
	simtest.NoLeaks(t)
	app, other := simtest.NewDevice(t, 1), simtest.NewDevice(t, 0)
	addr := other.Alloc(64)
	r := ascend.New(simtest.Library(t), zap.NewNop())
	use := func() {
		requireOn(t, 0, r, addr, "*")
		requireOn(t, 0, r, addr, "npu:0")
		_, err := r.Open(0)
		require.NoError(t, err)
	}
	for _, faults := range []string{"", "aclrtPointerGetAttributes:1=107002"} {
		simtest.Faults(t, faults)
		app.Do(func() {
			use()
			index, set := simtest.CurrentDevice(t)
			require.True(t, set)
			require.Equal(t, 1, index)
		})
	}
	locked(func() {
		use()
		_, set := simtest.CurrentDevice(t)
		require.False(t, set, "on a thread that has set none")
	})
}

func TestLocateFromManyThreads(t *testing.T) {
	simtest.NoLeaks(t)
	var memory [2]uintptr
	for index := range memory {
		memory[index] = simtest.NewDevice(t, index).Alloc(64)
	}
	r := ascend.New(simtest.Library(t), zap.NewNop())
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			for range 20 {
				requireOn(t, i%2, r, memory[i%2], "*")
			}
		})
	}
	group.Wait()
}
