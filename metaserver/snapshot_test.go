package metaserver

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"kvferry/core/status"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

const soon = 10 * time.Second

// contents loads a snapshot.
func contents(t *testing.T, file string) map[string][]byte {
	s := newStore(Options{MaxKeys: 100, MaxValue: 1 << 20, MaxBytes: 1 << 20})
	require.NoError(t, load(file, s))
	entries, _ := s.view()
	return entries
}

// onlyFile checks that a folder has one file beside the lock and the former one, that is, none that is half written.
func onlyFile(t *testing.T, file string) {
	found, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	var names []string
	for _, f := range found {
		if f.Name() != filepath.Base(file)+".lock" && f.Name() != filepath.Base(file)+formerSuffix {
			names = append(names, f.Name())
		}
	}
	require.Equal(t, []string{filepath.Base(file)}, names)
}

func TestSnapshotOutlivesTheServer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "snapshot")
	binary := string([]byte{0, 255, '\n', '"', 0xe2, 0x80, 0xa8})
	first, c := start(t, Options{Snapshot: file})
	c.put("a/rpc_meta/b <&>\u2028", `{"rpc_port": 1}`)
	c.put("gone", "x")
	c.put("bytes", binary)
	c.put("empty", "")
	c.do("DELETE", "gone", "")
	require.NoError(t, first.Close())
	onlyFile(t, file)

	second, c := start(t, Options{Snapshot: file})
	c.holds("a/rpc_meta/b <&>\u2028", `{"rpc_port": 1}`)
	c.holds("bytes", binary)
	c.holds("gone", "")
	code, _ := c.do("GET", "empty", "")
	require.Equal(t, 200, code)
	keys, size := second.store.usage()
	require.Equal(t, 3, keys)
	_, before := first.store.usage()
	require.Equal(t, before, size)
}

func TestChangesReachTheSnapshotWhileTheServerRuns(t *testing.T) {
	file := filepath.Join(t.TempDir(), "snapshot")
	_, c := start(t, Options{Snapshot: file})
	require.Empty(t, contents(t, file), "written at the start")
	for i := range 3 { // the later ones after the pause
		value := fmt.Sprint(i)
		c.put("k", value)
		require.Eventually(t, func() bool { return string(contents(t, file)["k"]) == value }, soon, 10*time.Millisecond)
	}
}

func TestGarbageIsRefusedAsASnapshotAndKept(t *testing.T) {
	const first = `{"format":"kvferry metadata","version":1,"entries":1}` + "\n"
	const one = `{"key":"k","value":"dg=="}` + "\n"
	for text, words := range map[string]string{
		"":                                       "does not start as one",
		"garbage":                                "does not start as one",
		`{"entries":{}}`:                         "does not start as one",
		`{"format":"x","version":1,"entries":0}`: "it is \"x\", version 1",
		`{"format":"kvferry metadata","version":2,"entries":0}`:  "version 2",
		`{"format":"kvferry metadata","version":1,"entries":-1}`: "with -1 entries",
		first:                            "entry 1 of 1: EOF",
		first + one[:10]:                 "entry 1 of 1: unexpected EOF",
		first + one + one:                "something follows its 1 entries",
		first + one + "x":                "something follows its 1 entries",
		first + `{"key":"","value":""}`:  "a key is required",
		first + `{"key":"k","value":1}`:  "entry 1 of 1",
		first + `{"key":"k","other":""}`: "entry 1 of 1",
		first + `{"key":"` + strings.Repeat("k", maxKey+1) + `","value":""}`: "1025 bytes",
		first + `{"key":"k","value":"` + strings.Repeat("AAAA", 10) + `"}`:   "more than 20 bytes",
	} {
		file := filepath.Join(t.TempDir(), "snapshot")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		_, err := Start(Options{Host: "127.0.0.1", Snapshot: file, MaxValue: 20})
		require.Equal(t, status.Metadata, status.Of(err, status.OK), text)
		require.ErrorContains(t, err, file)
		require.ErrorContains(t, err, words)
		kept, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, text, string(kept))
		onlyFile(t, file)
	}
}

func TestSnapshotIsWrittenWhereALinkLeads(t *testing.T) {
	file, link := filepath.Join(t.TempDir(), "snapshot"), filepath.Join(t.TempDir(), "link")
	s, c := start(t, Options{Snapshot: file})
	c.put("k", "1")
	require.NoError(t, s.Close())
	require.NoError(t, os.Symlink(file, link))
	s, c = start(t, Options{Snapshot: link})
	c.put("k", "2")
	require.NoError(t, s.Close())
	require.Equal(t, "2", string(contents(t, file)["k"]))
	require.Equal(t, "2", string(contents(t, link)["k"]))
}

func TestHalfWrittenSnapshotOfAKilledServerIsNotRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "snapshot")
	require.NoError(t, os.WriteFile(file+".new", []byte("half"), 0o600))
	s, c := start(t, Options{Snapshot: file})
	c.put("k", "v")
	require.NoError(t, s.Close())
	require.Equal(t, "v", string(contents(t, file)["k"]))
	onlyFile(t, file)
}

func TestOneServerAtATimeUsesASnapshot(t *testing.T) {
	file, link := filepath.Join(t.TempDir(), "snapshot"), filepath.Join(t.TempDir(), "link")
	first, c := start(t, Options{Snapshot: file})
	c.put("k", "v")
	require.NoError(t, os.Symlink(file, link))
	for _, name := range []string{file, link} {
		_, err := Start(Options{Host: "127.0.0.1", Snapshot: name})
		require.Equal(t, status.Metadata, status.Of(err, status.OK))
		require.ErrorContains(t, err, file)
		require.ErrorContains(t, err, fmt.Sprintf("another server uses it (process %d)", os.Getpid()))
	}
	c.put("k", "w")
	require.NoError(t, first.Close())
	_, c = start(t, Options{Snapshot: link})
	c.holds("k", "w")
}

func TestALinkAtTheNameOfTheNextSnapshotIsNotFollowed(t *testing.T) {
	for _, suffix := range []string{newSuffix, formerSuffix} {
		file, precious := filepath.Join(t.TempDir(), "snapshot"), filepath.Join(t.TempDir(), "precious")
		require.NoError(t, os.WriteFile(precious, []byte("precious"), 0o600))
		require.NoError(t, os.Symlink(precious, file+suffix))
		s, c := start(t, Options{Snapshot: file})
		c.put("k", "v")
		require.NoError(t, s.Close())
		kept, err := os.ReadFile(precious)
		require.NoError(t, err)
		require.Equal(t, "precious", string(kept))
		require.Equal(t, "v", string(contents(t, file)["k"]))
	}
	file, precious := filepath.Join(t.TempDir(), "snapshot"), filepath.Join(t.TempDir(), "precious")
	require.NoError(t, os.Symlink(precious, file+".lock"))
	_, err := Start(Options{Host: "127.0.0.1", Snapshot: file})
	require.Equal(t, status.Metadata, status.Of(err, status.OK))
	require.NoFileExists(t, precious)
}

func TestABadSnapshotIsPutAsideWhereTheFormerOneCanBeRead(t *testing.T) {
	for what, spoil := range map[string]func(string) string{
		"torn":    func(text string) string { return text[:len(text)-10] },
		"empty":   func(string) string { return "" },
		"foreign": func(string) string { return "root:x:0:0:root:/root:/bin/bash\n" },
	} {
		t.Run(what, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "snapshot")
			s, c := start(t, Options{Snapshot: file})
			c.put("k", "former")
			require.NoError(t, s.Close())
			s, c = start(t, Options{Snapshot: file}) // makes the first one the former
			c.put("k2", "latest")
			require.NoError(t, s.Close())
			whole, err := os.ReadFile(file)
			require.NoError(t, err)
			bad := spoil(string(whole))
			require.NoError(t, os.WriteFile(file, []byte(bad), 0o600))

			logged, logs := observer.New(zap.WarnLevel)
			s, c = start(t, Options{Snapshot: file, Log: zap.New(logged)})
			c.holds("k", "former")
			require.Contains(t, fmt.Sprint(logs.FilterMessageSnippet("the former one is used").All()), file)
			require.NoError(t, s.Close())
			aside, err := os.ReadFile(file + badSuffix)
			require.NoError(t, err)
			require.Equal(t, bad, string(aside))
			require.Equal(t, "former", string(contents(t, file)["k"]))
		})
	}
}

func TestASnapshotBeyondTheLimitsIsNotReplacedByTheFormerOne(t *testing.T) {
	file := filepath.Join(t.TempDir(), "snapshot")
	s, _ := start(t, Options{Snapshot: file})
	require.NoError(t, s.Close())
	s, c := start(t, Options{Snapshot: file})
	c.put("k", strings.Repeat("v", 100))
	require.NoError(t, s.Close())
	_, err := Start(Options{Host: "127.0.0.1", Snapshot: file, MaxValue: 20})
	require.ErrorContains(t, err, "more than 20 bytes")
	require.ErrorContains(t, err, "is left as it is")
	require.Len(t, contents(t, file), 1)
}

func TestAPipeIsNoSnapshot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "snapshot")
	require.NoError(t, syscall.Mkfifo(file, 0o600))
	_, err := Start(Options{Host: "127.0.0.1", Snapshot: file})
	require.ErrorContains(t, err, "not a regular file")
}

func TestSnapshotThatCannotBeWrittenIsToldAtTheStart(t *testing.T) {
	for _, file := range []string{filepath.Join(t.TempDir(), "missing", "snapshot"), t.TempDir()} {
		_, err := Start(Options{Host: "127.0.0.1", Snapshot: file})
		require.Equal(t, status.Metadata, status.Of(err, status.OK))
		require.ErrorContains(t, err, file)
	}
}

func TestSnapshotIsWrittenAgainOnceItCanBe(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "folder")
	require.NoError(t, os.Mkdir(folder, 0o700))
	file := filepath.Join(folder, "snapshot")
	s, c := start(t, Options{Snapshot: file})
	require.NoError(t, os.RemoveAll(folder))
	c.put("k", "v")
	require.Eventually(t, func() bool { return s.snapshot.failures.Load() > 0 }, soon, 10*time.Millisecond)
	require.Contains(t, string(s.metrics()), "\nkvferry_metadata_snapshot_failures_total ")
	c.holds("k", "v")
	require.NoError(t, os.Mkdir(folder, 0o700))
	require.Eventually(t, func() bool {
		_, err := os.Stat(file)
		return err == nil
	}, soon, 10*time.Millisecond)
	require.Equal(t, "v", string(contents(t, file)["k"]))
}

func TestSnapshotThatIsLostInTheEndIsAnError(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "folder")
	require.NoError(t, os.Mkdir(folder, 0o700))
	s, c := start(t, Options{Snapshot: filepath.Join(folder, "snapshot")})
	require.NoError(t, os.RemoveAll(folder))
	c.put("k", "v")
	err := s.Close()
	require.Equal(t, status.Metadata, status.Of(err, status.OK))
	require.ErrorContains(t, err, folder)
	require.Equal(t, err, s.Close(), "a second time")
}

func FuzzSnapshot(f *testing.F) {
	f.Add([]byte(`{"format":"kvferry metadata","version":1,"entries":1}` + "\n" + `{"key":"k","value":"dg=="}`))
	f.Add([]byte(`{"format":"kvferry metadata","version":1,"entries":1000000000}{"key":"k"}`))
	file := filepath.Join(f.TempDir(), "snapshot")
	f.Fuzz(func(t *testing.T, text []byte) {
		require.NoError(t, os.WriteFile(file, text, 0o600))
		s := newStore(Options{MaxKeys: 3, MaxValue: 10, MaxBytes: 20})
		if load(file, s) != nil {
			return
		}
		before, _ := s.view()
		require.NoError(t, replace(file, before))
		again := newStore(Options{MaxKeys: 3, MaxValue: 10, MaxBytes: 20})
		require.NoError(t, load(file, again))
		after, _ := again.view()
		require.Len(t, after, len(before))
	})
}
