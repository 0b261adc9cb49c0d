package driver_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/internal/dl"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

var hostMemory = make([]byte, 4096)

// atHost is an address of host memory that no library knows.
func atHost() uintptr { return drivertest.AddressOf(hostMemory) }

func TestMemoryIsWhereTheLibrarySaysWhateverItsLocation(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		r, logs := k.logged(simtest.Library(t))
		for index := range 2 {
			addr := simtest.NewDevice(t, index).Alloc(4096)
			for _, location := range []string{"*", "", "cpu:0", "other:3"} {
				drivertest.RequireOn(t, index, r, addr, location)
				drivertest.RequireOn(t, index, r, addr+4095, location)
			}
		}
		drivertest.RequireHost(t, r, atHost(), "*")
		require.Zero(t, logs.Len())
	})
}

func TestPageLockedMemoryIsTheHosts(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		r, _ := k.logged(simtest.Library(t))
		drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
			drivertest.RequireHost(t, r, drivertest.AddressOf(b.Host), "*")
		})
	})
}

func TestALocationThatIsWrongIsLogged(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		r, logs := k.logged(simtest.Library(t))
		addr := simtest.NewDevice(t, 0).Alloc(64)
		drivertest.RequireOn(t, 0, r, addr, k.at("0"))
		require.Zero(t, logs.Len())

		drivertest.RequireOn(t, 0, r, addr, k.at("1"))
		entry := logs.TakeAll()[0]
		require.Equal(t, k.at("1"), entry.ContextMap()["said"])
		require.Equal(t, k.at("0"), entry.ContextMap()["is"])

		drivertest.RequireHost(t, r, atHost(), k.at("0"))
		require.Contains(t, logs.TakeAll()[0].ContextMap()["is"], "not ")
	})
}

func TestMalformedLocationsAreRefused(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		r, _ := k.logged("/nowhere/" + k.file)
		for _, number := range []string{"", ":", ":x", ":-1", ":+1", ":1:2", "1", ": 1", ":99999999999"} {
			location := k.name + number
			_, _, err := r.Locate(atHost(), location)
			require.Equal(t, status.InvalidArgument, status.Of(err, status.OK), location)
			require.ErrorContains(t, err, fmt.Sprintf("location %q is malformed: those of %ss are %s:0", location, k.device, k.name))
		}
	})
}

func TestALocationOnADeviceThatIsNotThereIsRefused(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		r, _ := k.logged(simtest.Library(t))
		_, _, err := r.Locate(atHost(), k.at("99"))
		require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
		require.ErrorContains(t, err, fmt.Sprintf("there is no %s:99: this process has 2 %ss", k.name, k.device))
	})
}

func TestWhereTheLibraryCannotSayTheLocationIsBelieved(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		addr := simtest.NewDevice(t, 1).Alloc(64)
		simtest.Faults(t, k.locate+":1+")
		r, _ := k.logged(simtest.Library(t))
		drivertest.RequireOn(t, 1, r, addr, k.at("1"))
		drivertest.RequireHost(t, r, addr, "*")
		drivertest.RequireHost(t, r, addr, "cpu:0")
		_, _, err := r.Locate(addr, k.at("2"))
		require.ErrorContains(t, err, "this process has 2 ")
	})
}

func TestWithoutALibraryAllMemoryIsTheHosts(t *testing.T) {
	onAllFresh(t, false, func(t *testing.T, k *kind) {
		r, logs := k.logged("")
		drivertest.RequireHost(t, r, atHost(), "*")
		require.Zero(t, logs.Len())
		_, _, err := r.Locate(atHost(), k.at("0"))
		require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
		require.ErrorContains(t, err, "memory on "+k.at("0"))
		require.ErrorContains(t, err, "was not found")
	})
}

func TestALibraryThatCannotBeOpenedIsLoggedOnceAndFailsOnlyWhoNamesADevice(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		r, logs := k.logged("/nowhere/" + k.file)
		drivertest.RequireHost(t, r, atHost(), "*")
		drivertest.RequireHost(t, r, atHost(), "cpu:0")
		require.Equal(t, 1, logs.FilterMessage("no "+k.device+" memory can be moved").Len())
		require.Equal(t, 1, logs.Len())
		_, _, err := r.Locate(atHost(), k.at("0"))
		require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
		require.ErrorContains(t, err, k.variable+" is /nowhere/"+k.file)
	})
}

func TestTheApplicationsLibraryIsUsedWithoutBeingAskedForAndNotInitialised(t *testing.T) {
	onAllFresh(t, false, func(t *testing.T, k *kind) {
		r, _ := k.logged("")
		drivertest.RequireHost(t, r, atHost(), "*")

		_, err := dl.Open(drivertest.FreshLibrary())
		require.NoError(t, err)
		drivertest.RequireHost(t, r, atHost(), "*")
		k.use(t, "")
		calls := simtest.TakeReport(t).Calls
		require.EqualValues(t, 1, calls[k.locate])
		require.Zero(t, calls[k.first])

		app := simtest.NewDevice(t, 1)
		drivertest.RequireOn(t, 1, r, app.Alloc(64), "*")
	})
}

func TestALibraryOfTheApplicationsThatIsTooOldIsNoErrorForHostMemory(t *testing.T) {
	onAllFresh(t, false, func(t *testing.T, k *kind) {
		old := filepath.Join(t.TempDir(), k.file)
		output, err := exec.Command("cc", "-shared", "-Wl,-soname,"+k.file, "-x", "c", os.DevNull, "-o", old).CombinedOutput()
		require.NoError(t, err, "%s", output)
		_, err = dl.Open(old)
		require.NoError(t, err)

		r, logs := k.logged("")
		drivertest.RequireHost(t, r, atHost(), "*")
		require.Zero(t, logs.Len())
		require.ErrorContains(t, r.Require(), "by the loader: it has no function "+k.first)
	})
}

func TestTheApplicationsCurrentDeviceIsUntouched(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		app, other := simtest.NewDevice(t, 1), simtest.NewDevice(t, 0)
		addr := other.Alloc(64)
		r := k.new(simtest.Library(t), zap.NewNop())
		use := func() {
			drivertest.RequireOn(t, 0, r, addr, "*")
			drivertest.RequireOn(t, 0, r, addr, k.at("0"))
			_, err := r.Open(0)
			require.NoError(t, err)
		}
		app.Do(func() {
			use()
			index, set := simtest.CurrentDevice(t)
			require.True(t, set)
			require.Equal(t, 1, index)
		})
		drivertest.Locked(func() {
			use()
			_, set := simtest.CurrentDevice(t)
			require.False(t, set, "on a thread that has set none")
		})
	})
}

func TestLocateFromManyThreads(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		var memory [2]uintptr
		for index := range memory {
			memory[index] = simtest.NewDevice(t, index).Alloc(64)
		}
		var r device.Runtime = k.new(simtest.Library(t), zap.NewNop())
		var group sync.WaitGroup
		for i := range 16 {
			group.Go(func() {
				for range 20 {
					drivertest.RequireOn(t, i%2, r, memory[i%2], "*")
				}
			})
		}
		group.Wait()
	})
}
