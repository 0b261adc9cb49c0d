package core

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// logInto returns what use logs under the configuration given, with a log directory of its own.
func logInto(t *testing.T, level string, use func(*zap.Logger)) string {
	t.Helper()
	c := DefaultConfig()
	c.LogLevel, c.LogDir = level, t.TempDir()
	log, closeLog := NewLogger(c)
	use(log)
	require.NoError(t, closeLog())
	text, err := os.ReadFile(filepath.Join(c.LogDir, fmt.Sprintf("kvferry.%d.log", os.Getpid())))
	require.NoError(t, err)
	return string(text)
}

func everyLevel(log *zap.Logger) {
	log.Debug("at debug")
	log.Info("at info")
	log.Warn("at warning")
	log.Error("at error")
}

func TestLogLevelIsTheLeastSevereOneWritten(t *testing.T) {
	for level, lines := range map[string]int{"TRACE": 4, "INFO": 3, "WARNING": 2, "ERROR": 1} {
		assert.Equal(t, lines, strings.Count(logInto(t, level, everyLevel), "\n"), level)
	}
}

func TestLogLineHasTimeLevelMessageAndFields(t *testing.T) {
	line := logInto(t, "WARNING", func(log *zap.Logger) { log.Warn("peer refused", zap.String("peer", "a:1")) })
	assert.Regexp(t, `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\S*\tWARN\tkvferry\tpeer refused\t\{"peer": "a:1"\}\n$`, line)
}

func TestRepeatedLinesAreThinnedOut(t *testing.T) {
	text := logInto(t, "WARNING", func(log *zap.Logger) {
		for range 10_000 {
			log.Warn("again")
		}
		log.Warn("something else")
	})
	assert.Less(t, strings.Count(text, "again"), 1000)
	assert.Contains(t, text, "something else")
}

func TestLogDirectoryThatCannotBeWrittenIsReportedOnceOnStandardError(t *testing.T) {
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	standard := os.Stderr
	os.Stderr = writer
	c := DefaultConfig()
	c.LogDir = filepath.Join(t.TempDir(), "missing")
	log, closeLog := NewLogger(c)
	os.Stderr = standard

	log.Error("still heard")
	require.NoError(t, closeLog())
	require.NoError(t, writer.Close())
	text := make([]byte, 4096)
	n, err := reader.Read(text)
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(text[:n])), "\n")
	require.NotEmpty(t, lines)
	assert.Contains(t, lines[0], "cannot be opened")
	assert.Contains(t, lines[0], "missing")
	require.NoError(t, reader.Close())
}

func TestLogFileKeepsOneOlderFileOfItsLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLogFile(path)
	require.NoError(t, err)
	l.limit = 10
	for _, line := range []string{"first...\n", "second..\n", "third...\n"} {
		_, err := l.Write([]byte(line))
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	for name, want := range map[string]string{path: "third...\n", path + ".1": "second..\n"} {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		assert.Equal(t, want, string(text))
	}
}

func TestEnginesThatLogToOneDirectoryShareTheFile(t *testing.T) {
	c := DefaultConfig()
	c.LogDir = t.TempDir()
	path := filepath.Join(c.LogDir, fmt.Sprintf("kvferry.%d.log", os.Getpid()))
	first, closeFirst := NewLogger(c)
	second, closeSecond := NewLogger(c)
	first.Error("of the first")
	second.Error("of the second")
	require.NoError(t, closeFirst())
	assert.Equal(t, 1, descriptorsOf(t, path))
	second.Error("the file stays open for the other engine")
	require.NoError(t, closeSecond())
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Regexp(t, "^.*of the first.*\n.*of the second.*\n.*stays open.*\n$", string(text))
	assert.Eventually(t, func() bool { return descriptorsOf(t, path) == 0 }, time.Minute, time.Millisecond)
}

// descriptorsOf counts this process's descriptors of a file.
func descriptorsOf(t *testing.T, path string) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, fd := range all {
		if of, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && of == path {
			n++
		}
	}
	return n
}
