package simtest_test

import (
	"os"
	"os/exec"
	"testing"

	"kvferry/sim/simtest"

	"github.com/stretchr/testify/require"
)

// careless is set in a process that runs a test which must fail.
const careless = "KVFERRY_TEST_CARELESS"

// requireFailure runs a test in a process of its own, where it is to fail with that text.
func requireFailure(t *testing.T, text string) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	child.Env = append(os.Environ(), careless+"=1")
	output, err := child.CombinedOutput()
	require.Error(t, err, "%s", output)
	require.Contains(t, string(output), text)
}

func TestNoLeaksFailsWhenSomethingIsLeftOver(t *testing.T) {
	if os.Getenv(careless) == "" {
		requireFailure(t, "left over at the end")
		return
	}
	simtest.NoLeaks(t)
	d, err := simtest.Runtime(t).Open(0)
	require.NoError(t, err)
	simtest.NewDevice(t, 0).Do(func() { _, err = d.NewEvent() })
	require.NoError(t, err)
}

func TestNoLeaksFailsWhenSomethingWasMisused(t *testing.T) {
	if os.Getenv(careless) == "" {
		requireFailure(t, "no_device_set")
		return
	}
	simtest.NoLeaks(t)
	d, err := simtest.Runtime(t).Open(0)
	require.NoError(t, err)
	_, err = d.Allocate(64)
	require.Error(t, err, "no device is set here")
}

func TestFaultsEndWithTheTest(t *testing.T) {
	app := simtest.NewDevice(t, 0)
	t.Run("with faults", func(t *testing.T) {
		simtest.Faults(t, "aclrtMalloc:1+")
		d, err := simtest.Runtime(t).Open(0)
		require.NoError(t, err)
		app.Do(func() { _, err = d.Allocate(64) })
		require.ErrorContains(t, err, "a fault on purpose")
	})
	app.Free(app.Alloc(64))
}

func TestMemoryOfADevice(t *testing.T) {
	simtest.NoLeaks(t)
	app := simtest.NewDevice(t, 1)
	kept, freed := app.Alloc(1<<20), app.Alloc(64)
	app.Write(kept+1000, []byte("kv cache"))
	require.Equal(t, "kv cache", string(app.Read(kept+1000, 8)))
	app.Free(freed)
	require.EqualValues(t, 1, simtest.TakeReport(t).Leaked.DeviceAllocations)
	app.Do(func() {
		index, set := simtest.CurrentDevice(t)
		require.True(t, set)
		require.Equal(t, 1, index)
	})
}
