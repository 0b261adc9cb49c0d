package core

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zapcore"
)

func TestALineOfTheHostIsOneOfTheLogAndLeavesNothingOpen(t *testing.T) {
	var host HostLog
	c := DefaultConfig()
	for _, c.LogDir = range []string{t.TempDir(), t.TempDir()} {
		host.Write(c, zapcore.WarnLevel, "one\n\x1btwo € \xff")
		host.Write(c, zapcore.InfoLevel, "below the level")
		FlushLogs()
		text, err := os.ReadFile(filepath.Join(c.LogDir, fmt.Sprintf("kvferry.%d.log", os.Getpid())))
		require.NoError(t, err)
		require.Regexp(t, `^\S+\tWARN\tkvferry\tone  two € .\n$`, string(text))
		require.Eventually(t, func() bool { return !isOpen(c.LogDir) }, 20*time.Second, time.Millisecond)
	}
}

func TestALineOfTheHostThatRepeatsIsThinnedOut(t *testing.T) {
	var host HostLog
	c := DefaultConfig()
	c.LogDir = t.TempDir()
	for range 10_000 {
		host.Write(c, zapcore.WarnLevel, "again")
	}
	FlushLogs()
	text, err := os.ReadFile(filepath.Join(c.LogDir, fmt.Sprintf("kvferry.%d.log", os.Getpid())))
	require.NoError(t, err)
	require.Less(t, strings.Count(string(text), "again"), 1000)
}

// isOpen reports whether there is an output for a file in that directory.
func isOpen(dir string) bool {
	outputs.Lock()
	defer outputs.Unlock()
	for key := range outputs.open {
		if filepath.Dir(key.file) == dir {
			return true
		}
	}
	return false
}
