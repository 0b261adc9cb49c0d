package main

// #include "internal.h"
import "C"

import (
	"unsafe"

	"kvferry/core"

	"github.com/mattn/go-pointer"
)

// A wait for several batches has the steps of wait.go, with one word, which every batch sets when it has ended. Each time C calls
// kvferry_go_check_many.

// watchMany is a C caller's wait for several batches.
type watchMany struct {
	batches []*core.Batch
	cancels []func()
}

//export kvferry_go_watch_many
func kvferry_go_watch_many(engine unsafe.Pointer, ids C.numbers_t, count C.size_t, word *C.uint32_t, handle *unsafe.Pointer, reason *C.char) C.int {
	return negated(reason, func() error {
		w, err := newWatchMany(engine, ids, count)
		if err != nil {
			return err
		}
		for _, b := range w.batches {
			w.cancels = append(w.cancels, b.OnDone(func() { C.kvferry_signal_word(word) }))
		}
		*handle = pointer.Save(w)
		return nil
	})
}

func newWatchMany(engine unsafe.Pointer, ids C.numbers_t, count C.size_t) (*watchMany, error) {
	if _, err := engineOf(engine); err != nil {
		return nil, err
	}
	list, err := entries("the list of batch ids", (*uint64)(unsafe.Pointer(ids)), count)
	if err != nil {
		return nil, err
	}
	w := &watchMany{}
	for _, id := range list {
		_, b, err := batchOf(engine, id)
		if err != nil {
			return nil, err
		}
		w.batches = append(w.batches, b)
	}
	return w, nil
}

// kvferry_go_check_many returns BATCH_RUNNING while no batch has failed and not all have ended, and writes the progress of the
// others into the reason. Otherwise it returns the result of the batches.
//
//export kvferry_go_check_many
func kvferry_go_check_many(handle unsafe.Pointer, reason *C.char) (result C.int) {
	code := negated(reason, func() error {
		var running []*core.Batch
		defer func() {
			if result == C.BATCH_RUNNING {
				writeText(reason, C.REASON_SIZE, core.ProgressOf(running).String())
			}
		}()
		for _, b := range pointer.Restore(handle).(*watchMany).batches {
			if !b.Done() {
				running = append(running, b)
				result = C.BATCH_RUNNING
			} else if b.Err() != nil {
				result = C.KVFERRY_ERR_FAILED
				return b.Err()
			}
		}
		return nil
	})
	if code != 0 && result == 0 {
		return code
	}
	return result
}

//export kvferry_go_end_watch_many
func kvferry_go_end_watch_many(handle unsafe.Pointer, reason *C.char) {
	run(reason, func() error {
		w := pointer.Restore(handle).(*watchMany)
		pointer.Unref(handle)
		for _, cancel := range w.cancels {
			cancel()
		}
		return nil
	})
}
