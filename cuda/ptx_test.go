package cuda_test

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheKernelsAssembleForEachGenerationOfGPUs(t *testing.T) {
	ptxas, err := exec.LookPath("ptxas")
	if err != nil {
		t.Skip("there is no ptxas on the path: the PyPI package nvidia-cuda-nvcc-cu12 has one, in nvidia/cuda_nvcc/bin")
	}
	for _, generation := range []string{"sm_70", "sm_80", "sm_90"} {
		output, err := exec.Command(ptxas, "-arch="+generation, "-o", filepath.Join(t.TempDir(), "kernels"), "kernels.ptx").CombinedOutput()
		require.NoError(t, err, "%s: %s", generation, output)
	}
}
