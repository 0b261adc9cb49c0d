package dl_test

import (
	"path/filepath"
	"testing"

	"kvferry/internal/dl"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// notLoaded is a library of glibc's that nothing here uses.
const notLoaded = "libBrokenLocale.so.1"

func TestOpenSaysWhatTheLoaderSays(t *testing.T) {
	_, err := dl.Open("/nowhere/libnone.so")
	require.EqualError(t, err, "/nowhere/libnone.so: cannot open shared object file: No such file or directory")
}

func TestAPipeOrAFolderIsRefusedAndNotWaitedFor(t *testing.T) {
	folder := t.TempDir()
	pipe := filepath.Join(folder, "pipe")
	require.NoError(t, unix.Mkfifo(pipe, 0o600))
	for _, path := range []string{pipe, folder} {
		_, err := dl.Open(path)
		require.EqualError(t, err, path+": it is not a regular file")
		_, loaded := dl.Loaded(path)
		require.False(t, loaded)
	}
}

func TestSymbolsAreFoundByName(t *testing.T) {
	library, err := dl.Open("libc.so.6")
	require.NoError(t, err)
	defer library.Close()
	require.NotNil(t, library.Symbol("getpid"))
	require.Nil(t, library.Symbol("no_such_function"))
}

func TestALibraryIsLoadedUntilItsLastClose(t *testing.T) {
	_, loaded := dl.Loaded(notLoaded)
	require.False(t, loaded)

	first, err := dl.Open(notLoaded)
	require.NoError(t, err)
	second, loaded := dl.Loaded(notLoaded)
	require.True(t, loaded)
	require.Equal(t, first, second)

	first.Close()
	third, loaded := dl.Loaded(notLoaded)
	require.True(t, loaded)
	third.Close()
	second.Close()
	_, loaded = dl.Loaded(notLoaded)
	require.False(t, loaded)
}
