package main

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
	"unsafe"

	"kvferry/core/status"

	"github.com/stretchr/testify/require"
)

// reasonFor calls run and returns what it answers and the reason that it leaves. A test file may not use cgo, so the
// type of the buffer is inferred.
func reasonFor[Char any](run func(*Char, func() error) status.Code, f func() error) (status.Code, string) {
	buffer := make([]byte, 1024+1)
	buffer[1024] = 'x'
	code := run((*Char)(unsafe.Pointer(&buffer[0])), f)
	if buffer[1024] != 'x' {
		panic("the reason is longer than its buffer")
	}
	text, _, _ := strings.Cut(string(buffer), "\x00")
	return code, text
}

func TestPanicBecomesAnError(t *testing.T) {
	code, reason := reasonFor(run, func() error { panic("something impossible") })
	require.Equal(t, status.Context, code)
	require.Contains(t, reason, "something impossible")

	code, reason = reasonFor(run, func() error {
		var nothing *struct{ field [1 << 20]byte }
		nothing.field[5] = 1
		return nil
	})
	require.Equal(t, status.Context, code)
	require.Contains(t, reason, "nil pointer")
}

func TestErrorKeepsItsCodeAndText(t *testing.T) {
	code, reason := reasonFor(run, func() error { return status.Errorf(status.Socket, "peer %s", "a") })
	require.Equal(t, status.Socket, code)
	require.Equal(t, "peer a", reason)

	code, reason = reasonFor(run, func() error { return errors.New("no code") })
	require.Equal(t, status.Context, code)
	require.Equal(t, "no code", reason)

	code, reason = reasonFor(run, func() error { return nil })
	require.Equal(t, status.OK, code)
	require.Empty(t, reason)
}

func TestReasonIsCutBetweenCharacters(t *testing.T) {
	for shift := range 4 {
		text := strings.Repeat("x", shift) + strings.Repeat("€", 1000)
		_, reason := reasonFor(run, func() error { return errors.New(text) })
		require.True(t, utf8.ValidString(reason))
		require.True(t, strings.HasPrefix(text, reason))
		require.Greater(t, len(reason), 1023-4)
	}
	_, reason := reasonFor(run, func() error { return errors.New(strings.Repeat("\x80", 3000)) })
	require.Less(t, len(reason), 1024)
}
