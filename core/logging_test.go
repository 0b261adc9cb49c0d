package core

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	path := filepath.Join(t.TempDir(), "log")
	first, err := openLogFile(path)
	require.NoError(t, err)
	second, err := openLogFile(path)
	require.NoError(t, err)
	assert.Same(t, first, second)
	require.NoError(t, first.Close())
	_, err = second.Write([]byte("line\n"))
	assert.NoError(t, err, "the file stays open for the other engine")
	require.NoError(t, second.Close())
	_, err = second.Write([]byte("line\n"))
	assert.ErrorIs(t, err, os.ErrClosed)
}
