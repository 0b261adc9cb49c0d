package main

// #include "internal.h"
import "C"

import (
	"errors"
	"math"
	"time"
	"unsafe"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/metrics"
	"kvferry/core/status"
)

// The reasons of kvferry_failure_t are those of the metrics, from 1 on. This file does not compile if they differ.
var (
	_ [C.KVFERRY_REASON_REJECTED]byte     = [metrics.Rejected + 1]byte{}
	_ [C.KVFERRY_REASON_CONNECTION]byte   = [metrics.Connection + 1]byte{}
	_ [C.KVFERRY_REASON_STALLED]byte      = [metrics.Stalled + 1]byte{}
	_ [C.KVFERRY_REASON_PEER]byte         = [metrics.PeerFailed + 1]byte{}
	_ [C.KVFERRY_REASON_LOCAL_MEMORY]byte = [metrics.LocalMemory + 1]byte{}
	_ [C.KVFERRY_REASON_SECURITY]byte     = [metrics.Untrusted + 1]byte{}
	_ [C.KVFERRY_REASON_METADATA]byte     = [metrics.NoMetadata + 1]byte{}
	_ [C.KVFERRY_REASON_TIMEOUT]byte      = [metrics.TimedOut + 1]byte{}
	_ [C.KVFERRY_REASON_CANCELLED]byte    = [metrics.Cancelled + 1]byte{}
	_ [C.KVFERRY_REASON_CLOSED]byte       = [metrics.Closed + 1]byte{}
	_ [C.KVFERRY_REASON_OTHER]byte        = [metrics.Other + 1]byte{}
)

//export kvferry_go_start
func kvferry_go_start(engine unsafe.Pointer, what C.transfer_t, size C.size_t, batch *C.uint64_t, reason *C.char) C.int {
	return negated(reason, func() error {
		h, e, err := liveHandleOf(engine)
		if err != nil {
			return err
		}
		if what == nil {
			return status.Errorf(status.InvalidArgument, "the transfer is NULL")
		}
		// Members that the caller does not know are 0. Every caller knows those of the first version.
		var from C.kvferry_transfer_t
		least := unsafe.Offsetof(from.announce) + unsafe.Sizeof(from.announce)
		if uintptr(size) < least {
			return status.Errorf(status.InvalidArgument, "the transfer is said to have %d bytes, where a kvferry_transfer_t has %d",
				uint64(size), uint64(unsafe.Sizeof(from)))
		}
		known := unsafe.Slice((*byte)(unsafe.Pointer(&from)), unsafe.Sizeof(from))
		copy(known, unsafe.Slice((*byte)(unsafe.Pointer(what)), min(size, C.size_t(len(known)))))
		t, err := readTransfer(&from)
		if err != nil {
			return err
		}
		announced := from.announce != 0
		if announced {
			if err := h.completions.reserve(); err != nil {
				return err
			}
		}
		b, err := e.Start(t)
		if err != nil {
			if announced {
				h.completions.release()
			}
			return err
		}
		if announced {
			h.completions.announce(b)
		}
		*batch = C.uint64_t(b.ID())
		return nil
	})
}

// readTransfer reads what kvferry_start got. The arrays stay in C's memory.
func readTransfer(from *C.kvferry_transfer_t) (*core.Transfer, error) {
	segment, err := readText("the segment name", from.segment)
	if err != nil {
		return nil, err
	}
	t := &core.Transfer{Segment: segment, Opcode: core.Opcode(from.opcode)}
	if from.plan != nil {
		if t.Plan, err = transferOf(unsafe.Pointer(from.plan), from.plan_index); err != nil {
			return nil, err
		}
	}
	if t.Plan != nil && from.count > 0 {
		return nil, status.Errorf(status.InvalidArgument, "a transfer has a plan or ranges, not both")
	}
	if t.Arrays, err = readArrays(from.opcode, 0, from.local, from.remote, from.lengths, from.count); err != nil {
		return nil, err
	}
	if from.notify_name != nil || from.notify_text != nil {
		var message *metadata.Notification
		if message, err = readMessage(from.notify_name, from.notify_text); err != nil {
			return nil, err
		}
		t.Notify = message
	}
	if from.stream_kind != nil {
		t.Stream = &core.Stream{Runtime: C.GoString(from.stream_kind), Handle: uintptr(from.stream)}
	}
	if from.traceparent != nil {
		if t.Parent, err = readText("the traceparent", from.traceparent); err != nil {
			return nil, err
		}
	}
	if from.timeout_ms > 0 {
		t.Limit = time.Duration(min(from.timeout_ms, math.MaxInt64/1_000_000)) * time.Millisecond
	}
	return t, nil
}

//export kvferry_go_batch_progress
func kvferry_go_batch_progress(engine unsafe.Pointer, batch C.uint64_t, out *C.kvferry_progress_t, reason *C.char) C.int {
	return negated(reason, func() error {
		_, b, err := batchOf(engine, uint64(batch))
		if err != nil {
			return err
		}
		if out == nil {
			return status.Errorf(status.InvalidArgument, "there is no room for the progress: NULL")
		}
		*out = progressOf(b)
		return nil
	})
}

func progressOf(b *core.Batch) C.kvferry_progress_t {
	p := b.Progress()
	return C.kvferry_progress_t{moved: C.uint64_t(p.Moved), total: C.uint64_t(p.Total), nanoseconds: C.uint64_t(b.Took())}
}

//export kvferry_go_batch_failure
func kvferry_go_batch_failure(engine unsafe.Pointer, batch C.uint64_t, out *C.kvferry_failure_t, size C.size_t, text *C.char,
	length C.size_t, reason *C.char) C.int {
	return negated(reason, func() error {
		_, b, err := batchOf(engine, uint64(batch))
		if err != nil {
			return err
		}
		if out == nil {
			return status.Errorf(status.InvalidArgument, "there is no room for the failure: NULL")
		}
		found, why := failureOf(b)
		copyStruct(out, size, &found)
		if text != nil {
			writeText(text, length, why)
		}
		return nil
	})
}

// failureOf is why a batch has failed, and the text of the reason alone.
func failureOf(b *core.Batch) (found C.kvferry_failure_t, why string) {
	found.progress = progressOf(b)
	f, failed := b.Failure()
	if !failed {
		return found, ""
	}
	found.reason = C.int(f.Reason) + 1
	if errors.Is(f.Err, core.ErrRevoked) {
		found.reason = C.KVFERRY_REASON_REVOKED
	}
	found.request = math.MaxUint64
	if f.Index >= 0 {
		r := &f.Request
		found.request, found.opcode = C.uint64_t(f.Index), C.int(r.Opcode)
		found.local, found.remote, found.length = C.uint64_t(r.Local), C.uint64_t(r.Remote), C.uint64_t(r.Length)
	}
	return found, f.Err.Error()
}

// ways are the paths as the bits of kvferry_outcome_t.
var ways = [...]struct {
	path metrics.Path
	bit  C.int
}{{metrics.TCP, C.KVFERRY_PATH_TCP}, {metrics.Host, C.KVFERRY_PATH_HOST}, {metrics.Local, C.KVFERRY_PATH_LOCAL}}

//export kvferry_go_batch_outcome
func kvferry_go_batch_outcome(engine unsafe.Pointer, batch C.uint64_t, out *C.kvferry_outcome_t, size C.size_t, reason *C.char) C.int {
	return negated(reason, func() error {
		_, b, err := batchOf(engine, uint64(batch))
		if err != nil {
			return err
		}
		if out == nil {
			return status.Errorf(status.InvalidArgument, "there is no room for the outcome: NULL")
		}
		found := outcomeOf(b)
		copyStruct(out, size, &found)
		return nil
	})
}

func outcomeOf(b *core.Batch) (found C.kvferry_outcome_t) {
	o := b.Outcome()
	found.requests = C.uint64_t(o.Requests)
	found.began, found.ended = unixNanoseconds(o.Began), unixNanoseconds(o.Ended)
	for _, way := range ways {
		if o.Ways.Has(way.path) {
			found.paths |= way.bit
		}
	}
	writeText(&found.trace[0], C.size_t(len(found.trace)), o.Trace)
	writeText(&found.address[0], C.size_t(len(found.address)), o.Address)
	return found
}

func unixNanoseconds(t time.Time) C.uint64_t {
	if t.IsZero() {
		return 0
	}
	return C.uint64_t(t.UnixNano())
}
