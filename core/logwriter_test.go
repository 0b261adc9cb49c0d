package core

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// stuckStandardError puts a pipe that is full in the place of standard error, until restore.
func stuckStandardError(t *testing.T) (reading *os.File, restore func()) {
	t.Helper()
	reading, writing, err := os.Pipe()
	require.NoError(t, err)
	standard := os.Stderr
	os.Stderr = writing
	fill(t, writing)
	t.Cleanup(func() {
		reading.Close()
		writing.Close()
	})
	return reading, func() { os.Stderr = standard }
}

const filling = "x"

// fill fills a pipe, and makes it one that blocks.
func fill(t *testing.T, pipe *os.File) {
	raw, err := pipe.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		for err == nil {
			_, err = unix.Write(int(fd), []byte(strings.Repeat(filling, 4096)))
		}
		assert.ErrorIs(t, err, unix.EAGAIN)
		require.NoError(t, unix.SetNonblock(int(fd), false))
	}))
}

// logged reads a pipe up to a line that has last in it, and returns the lines.
func logged(t *testing.T, pipe *os.File, last string) []string {
	t.Helper()
	var text strings.Builder
	buffer := make([]byte, 4096)
	for !strings.Contains(text.String(), last) || !strings.HasSuffix(text.String(), "\n") {
		n, err := pipe.Read(buffer)
		require.NoError(t, err)
		text.Write(buffer[:n])
	}
	return strings.Split(strings.TrimSpace(strings.TrimLeft(text.String(), filling)), "\n")
}

var dropped = regexp.MustCompile(`(\d+) log lines were dropped: the log could not be written`)

func TestLoggingNeverWaitsForAPipeThatNobodyReads(t *testing.T) {
	reading, restore := stuckStandardError(t)
	defer restore()
	log, closeLog := NewLogger(DefaultConfig())
	const all = 3 * mostLogLines
	for i := range all {
		log.Warn(fmt.Sprintf("line %d", i))
	}
	lines := logged(t, reading, "were dropped")
	log.Warn("and so on")
	assert.Len(t, logged(t, reading, "and so on"), 1)
	require.NoError(t, closeLog())

	kept := len(lines) - 1
	assert.LessOrEqual(t, kept, mostLogLines)
	for i, line := range lines[:kept] {
		assert.Contains(t, line, fmt.Sprintf("line %d", i))
	}
	told := dropped.FindStringSubmatch(lines[kept])
	require.NotNil(t, told, lines[kept])
	count, err := strconv.Atoi(told[1])
	require.NoError(t, err)
	assert.Equal(t, all, kept+count)
}

func TestTheLogQueueIsBoundedInBytes(t *testing.T) {
	reading, restore := stuckStandardError(t)
	defer restore()
	log, closeLog := NewLogger(DefaultConfig())
	for i := range 100 {
		log.Warn(fmt.Sprintf("line %d", i), zap.String("long", strings.Repeat("y", mostLogBytes/10)))
	}
	outputs.Lock()
	bytes := outputs.open[outputKey{standard: os.Stderr}].bytes
	outputs.Unlock()
	assert.LessOrEqual(t, bytes, mostLogBytes)
	for _, line := range logged(t, reading, "were dropped") {
		assert.LessOrEqual(t, len(line), longestLogLine)
	}
	require.NoError(t, closeLog())
}

func TestClosingTheLogEndsWhenNobodyReadsIt(t *testing.T) {
	reading, restore := stuckStandardError(t)
	defer restore()
	for range 50 { // only the first waits: 50 would exceed the time of the test
		log, closeLog := NewLogger(DefaultConfig())
		log.Warn("never written")
		require.ErrorContains(t, closeLog(), "standard error")
	}
	outputs.Lock()
	assert.Len(t, outputs.open, 1, "one goroutine for the output, whoever has used it")
	outputs.Unlock()
	logged(t, reading, "never written")
	assert.Eventually(t, func() bool {
		outputs.Lock()
		defer outputs.Unlock()
		return len(outputs.open) == 0
	}, time.Minute, time.Millisecond, "the goroutine ends when the output takes lines again")
	assert.Zero(t, UnwrittenLogLines().Load())
}

func TestALogFileThatCannotBeOpenedYetHoldsNobodyUp(t *testing.T) {
	c := DefaultConfig()
	c.LogDir = t.TempDir()
	path := filepath.Join(c.LogDir, fmt.Sprintf("kvferry.%d.log", os.Getpid()))
	require.NoError(t, unix.Mkfifo(path, 0o600)) // to open it waits for a reader
	log, closeLog := NewLogger(c)
	log.Warn("a line")
	require.ErrorContains(t, closeLog(), path)
	reading, err := os.Open(path)
	require.NoError(t, err)
	assert.Contains(t, logged(t, reading, "a line")[0], "a line")
	require.NoError(t, reading.Close())
}

func TestLinesOfALoggerThatWasClosedGoNowhere(t *testing.T) {
	log, closeLog := NewLogger(DefaultConfig())
	require.NoError(t, closeLog())
	log.Error("too late")
	assert.Eventually(t, func() bool { return UnwrittenLogLines().Load() == 0 }, time.Minute, time.Millisecond,
		"lines of other tests are on their way, this one is not")
}

func TestAReaderOfStandardErrorThatIsGoneIsAnErrorAndNoSignal(t *testing.T) {
	reading, writing, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, reading.Close())
	_, err = (&standardError{writing}).Write([]byte("a line\n"))
	require.ErrorIs(t, err, unix.EPIPE)
	require.NoError(t, writing.Close())
}

// flaky is an output that fails, or takes a part of a line, as the test says.
type flaky struct {
	text  strings.Builder
	takes []int // bytes of each of the next lines, until it takes all
}

func (f *flaky) Write(line []byte) (int, error) {
	n := len(line)
	if len(f.takes) > 0 {
		n, f.takes = f.takes[0], f.takes[1:]
	}
	f.text.Write(line[:n])
	if n < len(line) {
		return n, unix.ENOSPC
	}
	return n, nil
}

func (*flaky) Close() error { return nil }

func TestLinesThatCannotBeWrittenAreCountedAndToldLater(t *testing.T) {
	out := &flaky{takes: []int{0, 4, 0}}
	w := &lineWriter{output: out}
	for _, line := range []string{"first\n", "second\n", "third\n", "fourth\n"} {
		w.write(logEntry{line: []byte(line)})
	}
	lines := strings.Split(out.text.String(), "\n")
	require.Len(t, lines, 4, out.text.String())
	assert.Regexp(t, `^\d{4}$`, lines[0], "the part of a line that was written stands by itself")
	assert.Regexp(t, `\t3 log lines were dropped: the log could not be written\t.*no space left`, lines[1])
	assert.Equal(t, []string{"fourth", ""}, lines[2:])
}
