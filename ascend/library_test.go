package ascend_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"kvferry/ascend"
	"kvferry/core/status"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// installed makes a folder in which AscendCL is where a toolkit has it.
func installed(t *testing.T, library string) (home string) {
	t.Helper()
	home = t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(home, "lib64"), 0o755))
	require.NoError(t, os.Symlink(library, filepath.Join(home, "lib64", "libascendcl.so")))
	return home
}

func TestAMissingLibraryIsAnErrorThatNamesTheToolkitsFolders(t *testing.T) {
	if !fresh(t) {
		return
	}
	empty := t.TempDir()
	t.Setenv("ASCEND_TOOLKIT_HOME", empty)
	t.Setenv("ASCEND_HOME_PATH", "")
	err := ascend.New("", zap.NewNop()).Require()
	require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
	require.ErrorContains(t, err, "by the loader: libascendcl.so: cannot open shared object file")
	require.ErrorContains(t, err, filepath.Join(empty, "lib64", "libascendcl.so"))
	require.ErrorContains(t, err, "ASCEND_HOME_PATH is not set")
}

func TestTheLibraryIsFoundWhereTheToolkitIs(t *testing.T) {
	if !fresh(t) {
		return
	}
	t.Setenv("ASCEND_TOOLKIT_HOME", t.TempDir())
	t.Setenv("ASCEND_HOME_PATH", installed(t, drivertest.FreshLibrary()))
	require.NoError(t, ascend.New("", zap.NewNop()).Require())
}

func TestAscendCLIsInitialisedOnceAndWhenADeviceIsUsed(t *testing.T) {
	if !fresh(t) {
		return
	}
	first := ascend.New(drivertest.FreshLibrary(), zap.NewNop())
	require.NoError(t, first.Require())
	require.Zero(t, simtest.TakeReport(t).Calls["aclInit"])

	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			_, err := ascend.New(drivertest.FreshLibrary(), zap.NewNop()).Open(0)
			require.NoError(t, err)
		})
	}
	group.Wait()
	require.EqualValues(t, 1, simtest.TakeReport(t).Calls["aclInit"])
}
