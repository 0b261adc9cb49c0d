package dl_test

import (
	"testing"

	"kvferry/internal/dl"

	"github.com/stretchr/testify/require"
)

// notLoaded is a library of glibc's that nothing here uses.
const notLoaded = "libBrokenLocale.so.1"

func TestOpenSaysWhatTheLoaderSays(t *testing.T) {
	_, err := dl.Open("/nowhere/libnone.so")
	require.EqualError(t, err, "/nowhere/libnone.so: cannot open shared object file: No such file or directory")
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
