package main

// #include "internal.h"
import "C"

import (
	"errors"
	"math"
	"unsafe"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/status"
)

//export kvferry_go_allocate_batch
func kvferry_go_allocate_batch(engine unsafe.Pointer, size C.size_t, reason *C.char) C.uint64_t {
	id := uint64(C.INVALID_BATCH)
	runLogged("allocateBatchID", engine, reason, func() error {
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		if size > math.MaxInt {
			return status.Errorf(status.InvalidArgument, "a batch of %d tasks is too large", uint64(size))
		}
		b, err := e.AllocateBatch(int(size))
		if err == nil {
			id = b.ID()
		}
		return err
	})
	return C.uint64_t(id)
}

//export kvferry_go_submit
func kvferry_go_submit(engine unsafe.Pointer, batch C.uint64_t, list *C.transfer_request_t, count C.size_t, reason *C.char) C.int {
	return positiveLogged("submitTransfer", engine, reason, func() error { return submit(engine, batch, list, count, nil) })
}

//export kvferry_go_submit_with_notify
func kvferry_go_submit_with_notify(engine unsafe.Pointer, batch C.uint64_t, list *C.transfer_request_t, count C.size_t,
	name, text *C.char, reason *C.char) C.int {
	return positiveLogged("submitTransferWithNotify", engine, reason, func() error {
		message, err := readMessage(name, text)
		if err != nil {
			return err
		}
		return submit(engine, batch, list, count, message)
	})
}

func submit(engine unsafe.Pointer, batch C.uint64_t, list *C.transfer_request_t, count C.size_t, message *metadata.Notification) error {
	e, b, err := batchOf(engine, uint64(batch))
	if err != nil {
		return err
	}
	// transfer_request_t has the layout of core.Request.
	requests, err := entries("the request list", (*core.Request)(unsafe.Pointer(list)), count)
	if err != nil {
		return err
	}
	return e.Submit(b, requests, message)
}

//export kvferry_go_task_status
func kvferry_go_task_status(engine unsafe.Pointer, batch C.uint64_t, task C.size_t, out *C.transfer_status_t, reason *C.char) C.int {
	return positiveLogged("getTransferStatus", engine, reason, func() error {
		_, b, err := batchOf(engine, uint64(batch))
		if err != nil {
			return err
		}
		if task > math.MaxInt {
			return status.Errorf(status.InvalidArgument, "batch %d has no task %d", b.ID(), uint64(task))
		}
		state, bytes, err := b.Status(int(task))
		if err != nil {
			return err
		}
		if out == nil {
			return status.Errorf(status.InvalidArgument, "there is no room for the status: NULL")
		}
		out.status, out.transferred_bytes = C.int(state), C.uint64_t(bytes)
		return nil
	})
}

//export kvferry_go_free_batch
func kvferry_go_free_batch(engine unsafe.Pointer, batch C.uint64_t, reason *C.char) C.int {
	return positiveLogged("freeBatchID", engine, reason, func() error {
		e, b, err := batchOf(engine, uint64(batch))
		if err != nil {
			return err
		}
		return e.FreeBatch(b)
	})
}

//export kvferry_go_discard_batch
func kvferry_go_discard_batch(engine unsafe.Pointer, batch C.uint64_t, reason *C.char) C.int {
	return negated(reason, func() error {
		e, b, err := batchOf(engine, uint64(batch))
		if err != nil {
			return err
		}
		return e.DiscardBatch(b)
	})
}

//export kvferry_go_cancel_batch
func kvferry_go_cancel_batch(engine unsafe.Pointer, batch C.uint64_t, reason *C.char) C.int {
	return negated(reason, func() error {
		e, b, err := batchOf(engine, uint64(batch))
		if err == nil {
			e.CancelBatch(b)
		}
		return err
	})
}

//export kvferry_go_batch_bytes
func kvferry_go_batch_bytes(engine unsafe.Pointer, batch C.uint64_t, reason *C.char) (bytes C.uint64_t) {
	run(reason, func() error {
		_, b, err := batchOf(engine, uint64(batch))
		if err == nil {
			bytes = C.uint64_t(b.Bytes())
		}
		return err
	})
	return bytes
}

//export kvferry_go_batch_status
func kvferry_go_batch_status(engine unsafe.Pointer, batch C.uint64_t, out *C.kvferry_batch_status_t, reason *C.char) C.int {
	return negated(reason, func() error {
		_, b, err := batchOf(engine, uint64(batch))
		if err != nil {
			return err
		}
		if out == nil {
			return status.Errorf(status.InvalidArgument, "there is no room for the status: NULL")
		}
		s := b.Summary()
		*out = C.kvferry_batch_status_t{
			tasks: C.uint64_t(s.Tasks), completed: C.uint64_t(s.Completed), failed: C.uint64_t(s.Failed),
			timed_out: C.uint64_t(s.TimedOut), bytes: C.uint64_t(s.Bytes),
		}
		return nil
	})
}

//export kvferry_go_batch_error
func kvferry_go_batch_error(engine unsafe.Pointer, batch C.uint64_t, out *C.char, size C.size_t, reason *C.char) C.int {
	return negated(reason, func() error {
		_, b, err := batchOf(engine, uint64(batch))
		if err != nil {
			return err
		}
		if out == nil || size == 0 {
			return status.Errorf(status.InvalidArgument, "there is no room for the reason")
		}
		text := ""
		if failure := b.Err(); failure != nil {
			text = failure.Error()
		}
		writeText(out, size, text)
		return nil
	})
}

// readArrays makes slices of the parallel arrays of kvferry_submit in C's memory.
func readArrays(opcode C.int, target C.int32_t, local, remote, lengths C.numbers_t, count C.size_t) (a core.Arrays, err error) {
	a = core.Arrays{Opcode: core.Opcode(opcode), Target: core.SegmentID(target)}
	if a.Local, err = entries("the list of local addresses", (*uint64)(unsafe.Pointer(local)), count); err != nil {
		return a, err
	}
	if a.Remote, err = entries("the list of remote addresses", (*uint64)(unsafe.Pointer(remote)), count); err != nil {
		return a, err
	}
	a.Lengths, err = entries("the list of lengths", (*uint64)(unsafe.Pointer(lengths)), count)
	return a, err
}

//export kvferry_go_submit_arrays
func kvferry_go_submit_arrays(engine unsafe.Pointer, opcode C.int, target C.int32_t, local, remote, lengths C.numbers_t,
	count C.size_t, notify C.message_t, batch *C.uint64_t, reason *C.char) C.int {
	return negated(reason, func() error {
		_, b, err := submitArrays(engine, opcode, target, local, remote, lengths, count, notify)
		if err == nil {
			*batch = C.uint64_t(b.ID())
		}
		return err
	})
}

// submitArrays makes a batch and submits one request for each index of the arrays. On an error there is no batch.
func submitArrays(engine unsafe.Pointer, opcode C.int, target C.int32_t, local, remote, lengths C.numbers_t,
	count C.size_t, notify C.message_t) (*core.Engine, *core.Batch, error) {
	e, err := engineOf(engine)
	if err != nil {
		return nil, nil, err
	}
	a, err := readArrays(opcode, target, local, remote, lengths, count)
	if err != nil {
		return nil, nil, err
	}
	var message *metadata.Notification
	if notify != nil {
		if message, err = readMessage(notify.name, notify.msg); err != nil {
			return nil, nil, err
		}
	}
	b, err := e.AllocateBatch(len(a.Local))
	if err != nil {
		return nil, nil, err
	}
	if err := e.SubmitArrays(b, &a, message); err != nil {
		return nil, nil, errors.Join(err, e.FreeBatch(b))
	}
	return e, b, nil
}
