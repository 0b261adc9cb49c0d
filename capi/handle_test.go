package main

import (
	"runtime"
	"testing"
	"unsafe"

	"kvferry/core"

	"github.com/stretchr/testify/require"
)

func TestAHandleThatHasEndedIsNeverGivenOutAgain(t *testing.T) {
	const many = 100_000
	first := handles.add(&engineHandle{})
	handles.end(first)
	before := len(handles.live)
	for range many {
		h := handles.add(&engineHandle{})
		if h == first {
			t.Fatal("it was")
		}
		handles.end(h)
	}
	require.Len(t, handles.live, before, "what has ended takes no memory")
	_, err := engineOf(first)
	require.ErrorContains(t, err, "was destroyed")
}

func TestAHandleOfADestroyedEngineReachesNoOther(t *testing.T) {
	start := func() unsafe.Pointer {
		handle, err := create(environment{}, core.Options{Name: "127.0.0.1", Metadata: "P2PHANDSHAKE"}, true, false)
		require.NoError(t, err)
		return handle
	}
	end := func(handle unsafe.Pointer) {
		h, err := handleOf(handle)
		require.NoError(t, err)
		require.NoError(t, h.end(handle))
	}
	stale := start()
	h, e, err := liveHandleOf(stale)
	require.NoError(t, err)
	transport := h.transport("tcp")
	_, err = engineOf(transport)
	require.ErrorContains(t, err, "is not an engine handle")
	end(stale)
	require.ErrorIs(t, e.SyncSegments(), core.ErrClosed)
	for range 5 {
		other := start()
		for _, handle := range []unsafe.Pointer{stale, transport} {
			require.NotEqual(t, handle, other)
			_, err := engineOf(handle)
			require.ErrorContains(t, err, "was destroyed")
		}
		end(other)
	}
}

func TestForeignHandlesAreToldFromThoseThatHaveEnded(t *testing.T) {
	elsewhere := newHandleTable().add(&engineHandle{}) // of another copy of the library
	var number int
	unused := handles.next
	for _, foreign := range []unsafe.Pointer{elsewhere, unsafe.Pointer(&number), *(*unsafe.Pointer)(unsafe.Pointer(&unused))} {
		_, err := engineOf(foreign)
		require.ErrorContains(t, err, "is not an engine handle of this library")
	}
}

// Programs in Go hold handles in their heap, as pointers.
func TestTheCollectorTakesNoHandleForAPointer(t *testing.T) {
	kept := make([]unsafe.Pointer, 1000)
	for i := range kept {
		kept[i] = handles.add(&transportHandle{})
	}
	for range 3 {
		runtime.GC()
	}
	for _, h := range kept {
		what, _ := handles.find(h)
		require.NotNil(t, what)
		handles.end(h)
	}
}
