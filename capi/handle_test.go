package main

import (
	"testing"
	"unsafe"

	"github.com/mattn/go-pointer"
	"github.com/stretchr/testify/require"
)

func TestEndedHandlesAreKeptFromReuseAndBounded(t *testing.T) {
	seen := map[unsafe.Pointer]bool{}
	first := pointer.Save(&engineHandle{})
	bury(first)
	seen[first] = true
	for range keptTombstones - 1 {
		h := pointer.Save(&engineHandle{})
		require.False(t, seen[h], "the address of an ended handle was given out again")
		seen[h] = true
		bury(h)
	}
	_, err := engineOf(first)
	require.ErrorContains(t, err, "was destroyed")

	bury(pointer.Save(&engineHandle{}))
	_, err = engineOf(first)
	require.ErrorContains(t, err, "is not an engine handle")
	require.LessOrEqual(t, len(ended.handles), keptTombstones)
}
