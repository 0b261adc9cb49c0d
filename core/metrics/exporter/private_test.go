package exporter

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"kvferry/core/metrics"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// showPrivately shows an engine in a folder until the test ends, or detach is called. It returns the paths of the sockets there.
func showPrivately(t *testing.T, folder, engine string) (sockets []string, detach func()) {
	t.Helper()
	detach = AttachPrivately(folder, func() *metrics.Stats { return stats(engine) }, zap.NewNop())
	t.Cleanup(detach)
	sockets, err := filepath.Glob(folder + "/*")
	require.NoError(t, err)
	return sockets, detach
}

// shortFolder is a new folder whose path leaves room for the names of sockets: one has 107 bytes at most, and t.TempDir has the test's
// name in its own.
func shortFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "kvferry-test")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(folder)) })
	return folder
}

// leaveSocket makes a socket that nobody listens at.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
}

// refusal has an engine try to show itself in a folder, and returns what it logs.
func refusal(t *testing.T, folder string) (told string) {
	t.Helper()
	tellOnce = sync.Once{}
	observed, lines := observer.New(zap.InfoLevel)
	for range 2 {
		AttachPrivately(folder, func() *metrics.Stats { return stats("one") }, zap.New(observed))()
	}
	require.Len(t, lines.All(), 1, "it is said once")
	return lines.All()[0].ContextMap()["error"].(string)
}

func TestTheEnginesOfAProcessHaveOneSocketInAFolderOfTheUser(t *testing.T) {
	folder := filepath.Join(shortFolder(t), "new")
	first, endFirst := showPrivately(t, folder, "one")
	require.Len(t, first, 1)
	second, endSecond := showPrivately(t, folder, "two")
	require.Equal(t, first, second)
	require.Regexp(t, fmt.Sprintf(`/%d-[0-9a-f]{8}\.sock$`, os.Getpid()), first[0])
	for path, mode := range map[string]os.FileMode{folder: 0o700, first[0]: 0o600} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), path)
	}
	_, _, body := get(t, client("unix", first[0]), "/stats")
	require.Contains(t, body, `"one"`)
	require.Contains(t, body, `"two"`)
	endFirst()
	endSecond()
	require.NoFileExists(t, first[0])
}

func TestSocketsOfKilledProcessesAreRemovedAndNothingElse(t *testing.T) {
	folder := shortFolder(t) // and this user's alone
	at := func(name string) string { return filepath.Join(folder, name) }
	leaveSocket(t, at("1-00000000.sock"))
	leaveSocket(t, at("1-00000000.sock.1")) // killed before it had its name
	leaveSocket(t, at("2-00000000.sock.2")) // does not listen yet
	leaveSocket(t, at("other"))
	long := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(at("1-00000000.sock.1"), long, long))
	require.NoError(t, os.WriteFile(at("precious.sock"), nil, 0o600))
	require.NoError(t, os.Symlink(at("other"), at("link.sock")))
	living, err := net.Listen("unix", at("3-00000000.sock"))
	require.NoError(t, err)
	defer living.Close()

	names, detach := showPrivately(t, folder, "one")
	require.Len(t, names, 6)
	for _, kept := range []string{"2-00000000.sock.2", "other", "precious.sock", "link.sock", "3-00000000.sock"} {
		require.Contains(t, names, at(kept))
	}
	detach()
}

func TestAFolderThatOthersCouldOpenIsNotUsed(t *testing.T) {
	open := t.TempDir()
	require.NoError(t, os.Chmod(open, 0o710))
	require.Contains(t, refusal(t, open), "is open to other users: its mode is 0710")

	own := t.TempDir()
	require.NoError(t, os.Chmod(own, 0o700))
	link := filepath.Join(open, "link")
	require.NoError(t, os.Symlink(own, link))
	require.Contains(t, refusal(t, link), "not a directory")

	file := filepath.Join(open, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.Contains(t, refusal(t, file), "not a directory")
	require.Contains(t, refusal(t, filepath.Join(open, "no", "such")), "no such file")
	require.Empty(t, func() []os.DirEntry { all, _ := os.ReadDir(own); return all }())

	if os.Geteuid() == 0 {
		foreign := t.TempDir()
		require.NoError(t, os.Chmod(foreign, 0o700))
		require.NoError(t, os.Chown(foreign, 65534, 65534))
		require.Contains(t, refusal(t, foreign), "belongs to user 65534")
	}
}

func TestNoSocketIsMadeWhereNoneIsWanted(t *testing.T) {
	tellOnce = sync.Once{}
	observed, lines := observer.New(zap.DebugLevel)
	AttachPrivately(SocketsOff, func() *metrics.Stats { return stats("one") }, zap.New(observed))()
	require.Empty(t, lines.All())
	servers.Lock()
	defer servers.Unlock()
	require.NotContains(t, servers.open, privately)
}

func TestAnotherUserIsToldNothingAlthoughTheSocketIsOpenToAll(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	folder := shortFolder(t) // t.TempDir is in a folder that others cannot enter
	path := filepath.Join(folder, "socket")
	attachAt(t, "unix:"+path, func() *metrics.Stats { return stats("one") })
	require.NoError(t, os.Chmod(folder, 0o711))
	require.NoError(t, os.Chmod(path, 0o666))

	asked := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocks it: the thread, which has become another user's, ends with the goroutine
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			asked <- nil
			return
		}
		conn, err := net.Dial("unix", path)
		if err == nil {
			_, _ = conn.Write([]byte("GET /metrics HTTP/1.0\r\n\r\n"))
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		asked <- err
	}()
	require.Error(t, <-asked)
	code, _, _ := get(t, client("unix", path), "/metrics")
	require.Equal(t, http.StatusOK, code, "the listener goes on")
}
