package driver_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"kvferry/core/status"
	"kvferry/internal/dl"
	"kvferry/internal/driver"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

func TestAMissingLibraryIsAnErrorThatSaysWhereItWasLookedFor(t *testing.T) {
	onAllFresh(t, false, func(t *testing.T, k *kind) {
		err := k.new("", zap.NewNop()).Require()
		require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
		require.ErrorContains(t, err, "was not found: by the loader: "+k.file+": cannot open shared object file")
		if k == gpus {
			require.ErrorContains(t, err, "; it comes with NVIDIA's driver")
		}
	})
}

func TestTheLibraryIsFoundOnTheLoadersPath(t *testing.T) {
	onAllFresh(t, true, func(t *testing.T, k *kind) {
		require.NoError(t, k.new("", zap.NewNop()).Require())
	})
}

func TestAFileThatIsNamedIsTheOnlyOneThatIsTried(t *testing.T) {
	onAllFresh(t, true, func(t *testing.T, k *kind) {
		missing := filepath.Join(t.TempDir(), k.file)
		err := k.new(missing, zap.NewNop()).Require()
		require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
		require.ErrorContains(t, err, k.variable+" is "+missing)
		_, loaded := dl.Loaded(k.file)
		require.False(t, loaded)
	})
}

func TestALibraryThatLacksAFunctionIsRefusedByItsName(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		err := k.new("libc.so.6", zap.NewNop()).Require()
		require.ErrorContains(t, err, "it has no function "+k.first)
	})
}

func TestOpenOfADeviceThatIsNotThere(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		for _, index := range []int{-1, 2, 1 << 40} {
			_, err := simtest.Runtime(t).Open(index)
			require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
			require.ErrorContains(t, err, fmt.Sprintf("there is no %s:%d: this process has 2 %ss", k.name, index, k.device))
		}
	})
}

func TestOpenWithoutALibrary(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		_, err := k.new("/nowhere/"+k.file, zap.NewNop()).Open(0)
		require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
	})
}

func TestInitialisationIsTriedAgainAfterItFailed(t *testing.T) {
	count := map[*kind]string{npus: "aclrtGetDeviceCount", gpus: "cuDeviceGetCount"}
	onAllFresh(t, false, func(t *testing.T, k *kind) {
		k.use(t, "")
		simtest.Faults(t, k.first+":1,"+count[k]+":1")
		r := simtest.Runtime(t)
		_, err := r.Open(0)
		require.ErrorContains(t, err, k.first+"(")
		require.ErrorContains(t, err, "failed with "+k.fault)
		_, err = r.Open(0)
		require.ErrorContains(t, err, count[k]+"() failed with "+k.fault)
		_, err = r.Open(0)
		require.NoError(t, err)
	})
}

func TestAnErrorWithoutAMessageIsWhole(t *testing.T) {
	err := &driver.Error{Call: "aclrtFree(0x40)", Code: 507899}
	require.EqualError(t, err, "aclrtFree(0x40) failed with 507899")
}

func TestAnErrorIsFoundByItsCodeInOthers(t *testing.T) {
	err := fmt.Errorf("cuda:0: %w", &driver.Error{Call: "cuMemFree(0x40)", Code: 700, Message: "CUDA_ERROR_ILLEGAL_ADDRESS"})
	require.True(t, driver.FailedWith(err, 700))
	require.False(t, driver.FailedWith(err, 719))
	require.False(t, driver.FailedWith(nil, 0))
}

func TestALibraryWithoutStreamsToWaitWithRefusesACall(t *testing.T) {
	npus.use(t, "")
	r, _ := npus.logged(simtest.Library(t))
	err := r.Call(0, func() { t.Error("called") })
	require.Equal(t, status.NotImplemented, status.Of(err, status.OK))
	require.ErrorContains(t, err, "nothing can be done in the order of a stream of AscendCL")
}

func TestACallWithoutALibraryIsAnErrorThatSaysSo(t *testing.T) {
	for _, k := range []*kind{npus, gpus} {
		r, _ := k.logged("/nonexistent.so")
		err := r.Call(0, func() { t.Error("called") })
		require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
		require.ErrorContains(t, err, k.variable+" is /nonexistent.so")
	}
}
