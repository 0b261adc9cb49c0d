package security

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"kvferry/core/reload"
	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

func TestAChangedFileIsInForceForTheNextHandshake(t *testing.T) {
	path := secretFile(t, oldSecret)
	server, client := newEngine(t, Settings{SecretFile: path}), withSecrets(t, newSecret)
	_, atClient := meet(t, overPipe, server.Policy, client.Policy, "")
	require.Error(t, atClient.err)
	write(t, path, newSecret)
	requireMeet(t, overPipe, server, client)
	assert.EqualValues(t, 1, server.Counters().Reloads)
	assert.Equal(t, 1, server.log.FilterMessageSnippet("changed files are in force").Len())
}

func TestAFileIsFoundChangedHoweverItWasReplaced(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "secret")
	for name, replace := range map[string]func(content string){
		"written over": func(content string) { require.NoError(t, os.WriteFile(path, []byte(content), 0o600)) },
		"renamed":      func(content string) { write(t, path, content) },
		"as Kubernetes does": func(content string) {
			version := filepath.Join(folder, "..data_"+randomIdentity())
			write(t, version, content)
			require.NoError(t, os.Symlink(version, path+".link"))
			require.NoError(t, os.Rename(path+".link", path))
		},
		"with the same time": func(content string) {
			info, err := os.Stat(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
			require.NoError(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			write(t, path, oldSecret)
			e := newEngine(t, Settings{SecretFile: path})
			was := e.String()
			replace(newSecret)
			assert.EqualValues(t, 1, e.Generation())
			assert.NotEqual(t, was, e.String())
		})
	}
}

func TestAFileThatIsNoGoodLeavesTheLastGoodOneAndIsLoggedOnce(t *testing.T) {
	path := secretFile(t, oldSecret)
	server, client := newEngine(t, Settings{SecretFile: path}), withSecrets(t, oldSecret)
	warnings := func() int { return server.log.FilterMessageSnippet("the last good one stays in force").Len() }
	for i, spoil := range []func(){
		func() { write(t, path, "hunter2") },
		func() { require.NoError(t, os.Remove(path)) },
		func() { require.NoError(t, os.Mkdir(path, 0o700)) },
	} {
		spoil()
		for range 3 {
			requireMeet(t, overPipe, server, client)
		}
		assert.Equal(t, i+1, warnings())
		assert.EqualValues(t, i+1, server.Counters().FailedReloads)
	}
	require.NoError(t, os.Remove(path))
	write(t, path, oldSecret)
	requireMeet(t, overPipe, server, client)
	// It is said again when it is wrong again.
	require.NoError(t, os.Remove(path))
	requireMeet(t, overPipe, server, client)
	assert.Equal(t, 4, warnings())
	for _, line := range server.log.All() {
		assert.NotContains(t, fmt.Sprint(line.Message, line.ContextMap()), "hunter2")
	}
}

func TestFilesAreNotReadForEachHandshake(t *testing.T) {
	path := secretFile(t, oldSecret)
	e := newEngine(t, Settings{SecretFile: path})
	e.files.Interval = time.Hour
	write(t, path, newSecret)
	for range 3 {
		assert.Zero(t, e.Generation())
	}
	e.files.Interval = 0
	assert.EqualValues(t, 1, e.Generation())
}

func TestASecretThatOthersCanReadIsWarnedOfOnce(t *testing.T) {
	for mode, warnings := range map[os.FileMode]int{0o600: 0, 0o400: 0, 0o640: 1, 0o604: 1} {
		path := secretFile(t, oldSecret)
		require.NoError(t, os.Chmod(path, mode))
		e := newEngine(t, Settings{SecretFile: path})
		e.Generation()
		assert.Equal(t, warnings, e.log.FilterMessageSnippet("other users of this machine can read").Len(), mode)
	}
	ca := newCA(t, "cluster")
	settings := ca.issue(nil, "decode.kv")
	for _, path := range []string{settings.CertFile, settings.CAFile, settings.KeyFile} {
		require.NoError(t, os.Chmod(path, 0o644))
	}
	e := newEngine(t, settings)
	assert.Equal(t, 1, e.log.FilterMessageSnippet("other users of this machine can read").Len(), "a certificate is no secret")
}

func TestAPipeInPlaceOfASecretFileDoesNotHoldTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, unix.Mkfifo(path, 0o600))
	_, err := New(Settings{SecretFile: path}, randomIdentity(), zap.NewNop())
	assert.ErrorContains(t, err, "not a regular file")
}

func TestALongFileIsNotReadToItsEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "long")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, 1<<40))
	_, err := New(Settings{SecretFile: path}, randomIdentity(), zap.NewNop())
	assert.ErrorContains(t, err, "longer than")
}

// A file may lie on a file system that does not answer.
func TestAFileThatCannotBeReadHoldsNobodyForLong(t *testing.T) {
	release := make(chan struct{})
	stuck := false
	var mu sync.Mutex
	path := secretFile(t, oldSecret)
	s := secretSource(path, randomIdentity(), mustKey(t))
	parse := s.Make
	s.Make = func(contents [][]byte) (credentials, error) {
		mu.Lock()
		wait := stuck
		mu.Unlock()
		if wait {
			<-release
		}
		return parse(contents)
	}
	r, err := reload.New(s, zap.NewNop())
	require.NoError(t, err)
	r.Interval = 0
	mu.Lock()
	stuck = true
	mu.Unlock()
	write(t, path, newSecret)
	was := r.Current().String()
	for range 1000 { // without waiting for each
		assert.Equal(t, was, r.Current().String())
	}
	err = r.Close()
	require.ErrorContains(t, err, "still being read")
	assert.Equal(t, status.BatchBusy, status.Of(err, status.OK))
	close(release)
	require.Eventually(t, func() bool { return r.Close() == nil }, patience, time.Millisecond)
	assert.NotEqual(t, was, r.Current().String())
}
