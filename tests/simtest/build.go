package simtest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// OlderCANN and OlderCUDA build a simulator without what CANN and CUDA have added in later releases.
const (
	OlderCANN = "-DKVFERRY_SIM_OLDER_CANN"
	OlderCUDA = "-DKVFERRY_SIM_OLDER_CUDA"
)

// builder is scripts/build_library.py, which knows how the simulator is built.
var builder = filepath.Join("scripts", "build_library.py")

var building sync.Mutex

// build returns the path of the simulator of an API, compiled with those options, by the compiler in $CC if that is set. It
// builds it where there is none of these sources for this architecture yet. The library stays under build/ in the
// repository: its name has a hash of its sources, so it is never out of date.
func build(t testing.TB, f *api, options string) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	root := repository(t)
	folder := filepath.Join(root, "build", "simtest", fingerprint(t, root, options))
	library := filepath.Join(folder, f.file)
	if _, err := os.Stat(library); err == nil {
		return library
	}
	require.NoError(t, os.MkdirAll(folder, 0o755))
	made := filepath.Join(t.TempDir(), f.file)
	compile := exec.Command("python3", builder, f.kind, made)
	compile.Dir = root
	compile.Env = append(os.Environ(), "CGO_CFLAGS=-g -O2 "+options)
	output, err := compile.CombinedOutput()
	require.NoError(t, err, "building the simulator:\n%s", output)
	publish(t, made, library)
	return library
}

// publish puts a file in its place by a rename: tests of other packages may open or build the same file meanwhile.
func publish(t testing.TB, made, place string) {
	t.Helper()
	content, err := os.ReadFile(made)
	require.NoError(t, err)
	file, err := os.CreateTemp(filepath.Dir(place), "new")
	require.NoError(t, err)
	_, err = file.Write(content)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	require.NoError(t, os.Rename(file.Name(), place))
}

// repository is the folder with go.mod, above the one that the test runs in.
func repository(t testing.TB) string {
	t.Helper()
	folder, err := os.Getwd()
	require.NoError(t, err)
	for {
		if _, err := os.Stat(filepath.Join(folder, "go.mod")); err == nil {
			return folder
		}
		above := filepath.Dir(folder)
		require.NotEqual(t, folder, above, "go.mod is in no folder above that of the test")
		folder = above
	}
}

// fingerprint is a hash of all that the library is made of, and of what it is for.
func fingerprint(t testing.TB, root, options string) string {
	t.Helper()
	sources, err := filepath.Glob(filepath.Join(root, "sim", "*.*"))
	require.NoError(t, err)
	slices.Sort(sources)
	sources = append(sources, filepath.Join(root, "cuda", "kernels.h"))
	sum := sha256.New()
	fmt.Fprintln(sum, options, runtime.GOARCH)
	for _, source := range append(sources, filepath.Join(root, builder)) {
		file, err := os.Open(source)
		require.NoError(t, err)
		fmt.Fprintln(sum, filepath.Base(source))
		_, err = io.Copy(sum, file)
		require.NoError(t, err)
		require.NoError(t, file.Close())
	}
	return fmt.Sprintf("%x", sum.Sum(nil)[:8])
}
