package main

// #include "internal.h"
import "C"

import (
	"unsafe"

	"kvferry/core"

	"github.com/mattn/go-pointer"
)

// A blocking call on a batch:
//
//  1. Go submits or finds the batch, and makes a watch on it, which sets a word on the C caller's stack when the batch has ended.
//  2. C waits for the word.
//  3. Go ends the watch, after which nothing touches the word, and returns the result of the batch.
//
// If the batch has ended in step 1, there is no watch, and the call returns.

// watch is a C caller's wait for a batch.
type watch struct {
	engine *core.Engine
	batch  *core.Batch
	cancel func()
}

// startWatch makes a watch, stores its handle in *handle, and returns BATCH_RUNNING. If the batch has ended it makes none, and
// returns the result of the batch.
func startWatch(e *core.Engine, b *core.Batch, word *C.uint32_t, handle *unsafe.Pointer, free bool, reason *C.char) C.int {
	if b.Done() {
		return conclude(e, b, free, reason)
	}
	cancel := b.OnDone(func() { C.kvferry_signal_word(word) })
	*handle = pointer.Save(&watch{e, b, cancel})
	return C.BATCH_RUNNING
}

// expect has the engine expect that the calling thread submits a batch, and assists. The caller calls end afterwards.
func expect(engine unsafe.Pointer, target C.int32_t) (end func()) {
	e, err := engineOf(engine)
	if err != nil { // the submission fails with it
		return func() {}
	}
	return e.Expect(core.SegmentID(target))
}

//export kvferry_go_watch
func kvferry_go_watch(engine unsafe.Pointer, batch C.uint64_t, assist C.int, word *C.uint32_t, handle *unsafe.Pointer, reason *C.char) (result C.int) {
	code := negated(reason, func() error {
		e, b, err := batchOf(engine, uint64(batch))
		if err == nil {
			if assist != 0 {
				e.AssistLatest(b)
			}
			result = startWatch(e, b, word, handle, false, reason)
		}
		return err
	})
	return orCode(code, result)
}

//export kvferry_go_submit_and_watch
func kvferry_go_submit_and_watch(engine unsafe.Pointer, opcode C.int, target C.int32_t, local, remote, lengths C.numbers_t,
	count C.size_t, notify C.message_t, batch *C.uint64_t, word *C.uint32_t, handle *unsafe.Pointer, reason *C.char) (result C.int) {
	code := negated(reason, func() error {
		defer expect(engine, target)()
		e, b, err := submitArrays(engine, opcode, target, local, remote, lengths, count, notify)
		if err != nil {
			return err
		}
		e.Assist(b, core.SegmentID(target))
		if result = startWatch(e, b, word, handle, true, reason); result == C.BATCH_RUNNING {
			*batch = C.uint64_t(b.ID())
		}
		return nil
	})
	return orCode(code, result)
}

//export kvferry_go_end_watch
func kvferry_go_end_watch(handle unsafe.Pointer, free C.int, reason *C.char) (result C.int) {
	code := negated(reason, func() error {
		w := pointer.Restore(handle).(*watch)
		pointer.Unref(handle)
		w.cancel()
		result = conclude(w.engine, w.batch, free != 0, reason)
		return nil
	})
	return orCode(code, result)
}

// conclude returns the result of a batch, and frees it if free is set. For a batch that has not ended it returns BATCH_RUNNING, and
// writes its progress into the reason.
func conclude(e *core.Engine, b *core.Batch, free bool, reason *C.char) C.int {
	if !b.Done() {
		writeText(reason, C.REASON_SIZE, b.Progress().String())
		return C.BATCH_RUNNING
	}
	failure := b.Err()
	if free {
		if err := e.FreeBatch(b); err != nil {
			return negated(reason, func() error { return err })
		}
	}
	if failure != nil {
		writeText(reason, C.REASON_SIZE, failure.Error())
		return C.KVFERRY_ERR_FAILED
	}
	return C.KVFERRY_OK
}
