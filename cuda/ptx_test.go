package cuda_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheKernelsAssembleForEachGenerationOfGPUs(t *testing.T) {
	ptxas, err := exec.LookPath("ptxas")
	if err != nil {
		t.Skip("there is no ptxas on the path: the PyPI package nvidia-cuda-nvcc-cu12 has one, in nvidia/cuda_nvcc/bin")
	}
	help, err := exec.Command(ptxas, "--help").Output()
	require.NoError(t, err)
	known := 0
	for _, generation := range []string{"sm_70", "sm_80", "sm_90"} {
		if !strings.Contains(string(help), "'"+generation+"'") {
			continue // CUDA 13 has dropped sm_70
		}
		known++
		output, err := exec.Command(ptxas, "-arch="+generation, "-o", filepath.Join(t.TempDir(), "kernels"), "kernels.ptx").CombinedOutput()
		require.NoError(t, err, "%s: %s", generation, output)
	}
	require.Positive(t, known, "generations that this ptxas knows")
}
