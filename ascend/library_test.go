package ascend_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"kvferry/ascend"
	"kvferry/core/status"
	"kvferry/internal/dl"
	"kvferry/sim/simtest"

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

func TestAMissingLibraryIsAnErrorThatSaysWhereItWasLookedFor(t *testing.T) {
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
	t.Setenv("ASCEND_HOME_PATH", installed(t, os.Getenv(libraryOf)))
	require.NoError(t, ascend.New("", zap.NewNop()).Require())
}

func TestTheLibraryIsFoundOnTheLoadersPath(t *testing.T) {
	if freshOnLoaderPath(t) {
		require.NoError(t, ascend.New("", zap.NewNop()).Require())
	}
}

func TestAFileThatIsNamedIsTheOnlyOneThatIsTried(t *testing.T) {
	if !freshOnLoaderPath(t) {
		return
	}
	missing := filepath.Join(t.TempDir(), "libascendcl.so")
	err := ascend.New(missing, zap.NewNop()).Require()
	require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
	require.ErrorContains(t, err, "KVFERRY_ASCENDCL is "+missing)
	_, loaded := dl.Loaded("libascendcl.so")
	require.False(t, loaded)
}

func TestALibraryThatLacksAFunctionIsRefusedByItsName(t *testing.T) {
	err := ascend.New("libc.so.6", zap.NewNop()).Require()
	require.ErrorContains(t, err, "it has no function aclInit")
}

func TestAscendCLIsInitialisedOnceAndWhenADeviceIsUsed(t *testing.T) {
	if !fresh(t) {
		return
	}
	first := ascend.New(os.Getenv(libraryOf), zap.NewNop())
	require.NoError(t, first.Require())
	require.Zero(t, simtest.TakeReport(t).Calls["aclInit"])

	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			_, err := ascend.New(os.Getenv(libraryOf), zap.NewNop()).Open(0)
			require.NoError(t, err)
		})
	}
	group.Wait()
	require.EqualValues(t, 1, simtest.TakeReport(t).Calls["aclInit"])
}

func TestInitialisationIsTriedAgainAfterItFailed(t *testing.T) {
	if !fresh(t) {
		return
	}
	simtest.Faults(t, "aclInit:1,aclrtGetDeviceCount:1")
	r := ascend.New(os.Getenv(libraryOf), zap.NewNop())
	_, err := r.Open(0)
	require.ErrorContains(t, err, "aclInit(NULL) failed with 507899: aclInit, call 1: a fault on purpose")
	_, err = r.Open(0)
	require.ErrorContains(t, err, "aclrtGetDeviceCount() failed with 507899")
	_, err = r.Open(0)
	require.NoError(t, err)
}

func TestOpenOfADeviceThatIsNotThere(t *testing.T) {
	for _, index := range []int{-1, 2, 1 << 40} {
		_, err := simtest.Runtime(t).Open(index)
		require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
		require.ErrorContains(t, err, "this process has 2 NPUs")
	}
}

func TestOpenWithoutALibrary(t *testing.T) {
	_, err := ascend.New("/nowhere/libascendcl.so", zap.NewNop()).Open(0)
	require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
}
