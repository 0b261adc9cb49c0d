package reload

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// text is what the files in these tests give.
type text string

func (t text) String() string { return string(t) }

// joined makes a text of files, unless one is empty.
func joined(contents [][]byte) (text, error) {
	var all text
	for _, c := range contents {
		if len(c) == 0 {
			return "", errors.New("SETTING: a file is empty")
		}
		all += text(c)
	}
	return all, nil
}

func write(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

func TestWhatFilesGiveIsMadeAgainWhenOneOfThemChanges(t *testing.T) {
	folder := t.TempDir()
	one, two := filepath.Join(folder, "one"), filepath.Join(folder, "two")
	source := Source[text]{Files: []File{{Setting: "ONE", Path: one}, {Setting: "TWO", Path: two, Private: true}}, Make: joined}
	write(t, one, "a")
	_, err := New(source, zap.NewNop())
	require.ErrorContains(t, err, "TWO")
	require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))

	write(t, two, "b")
	logged, logs := observer.New(zap.InfoLevel)
	r, err := New(source, zap.New(logged))
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	r.Interval = time.Hour
	write(t, two, "c")
	assert.EqualValues(t, "ab", r.Current(), "it was read a moment ago")
	r.Interval = 0
	assert.EqualValues(t, "ac", r.Current())
	assert.EqualValues(t, 1, r.Changes())

	write(t, one, "")
	for range 3 {
		assert.EqualValues(t, "ac", r.Current(), "the last good one stays")
	}
	assert.EqualValues(t, 1, r.Failures(), "one that lasts counts once")
	assert.Equal(t, 1, logs.FilterMessageSnippet("the last good one stays in force").Len())
	write(t, one, "d")
	assert.EqualValues(t, "dc", r.Current())
	assert.EqualValues(t, "dc", r.Last())
	assert.EqualValues(t, 2, r.Changes())
}
