package ascend

// #include "acl.h"
import "C"

import (
	"math"
	"slices"
	"time"
	"unsafe"

	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/internal/driver"
)

// The steps of copies:
//
//  1. Copy, or CopyBatch, queues a list of them in a stream with one call into C;
//  2. Record queues an event behind them;
//  3. Wait, on another thread, sleeps until the device has reached the event;
//  4. Drain waits for the whole stream, and Close destroys it.

// batchLimit is how many copies one call of aclrtMemcpyBatchAsync may have: DEVMM_MEMCPY_BATCH_MAX_COUNT of the driver's
// header ascend_hal_define.h.
const batchLimit = 4096

// kinds are AscendCL's numbers for the directions.
var kinds = [...]C.int{
	device.HostToDevice: C.ACL_HOST_TO_DEVICE,
	device.DeviceToHost: C.ACL_DEVICE_TO_HOST,
	device.WithinDevice: C.ACL_DEVICE_TO_DEVICE,
}

// stream is a queue of copies.
type stream struct {
	npu    *npu
	handle C.uintptr_t
	peers  []int // whose memory it can access

	batch driver.Batch[C.uintptr_t, C.size_t] // the arrays of the call in progress
}

// C takes a device.Copy as it is.
var _ = [1]struct{}{}[unsafe.Sizeof(device.Copy{})-C.sizeof_struct_acl_copy]

// Copy queues the copies up to the first that is refused, by AscendCL or for its alignment.
func (s *stream) Copy(kind device.Kind, copies []device.Copy) (issued int, err error) {
	fit := len(copies)
	if kind == device.WithinDevice {
		fit = firstUnaligned(copies)
	}
	list := (*C.struct_acl_copy)(unsafe.Pointer(unsafe.SliceData(copies)))
	progress := C.kvferry_acl_copy(s.npu.library.acl, kinds[kind], list, C.size_t(fit), s.handle)
	issued = int(progress.index)
	if issued == len(copies) {
		return issued, nil
	}
	refused := copies[issued]
	if issued == fit {
		return issued, status.Errorf(status.InvalidArgument,
			"%s: a copy within the device, of %d bytes from %#x to %#x, is not aligned to %d bytes",
			npus.NameOf(s.npu.index), refused.Length, refused.Src, refused.Dst, alignment)
	}
	return issued, s.npu.failed(progress.code, status.Context, "aclrtMemcpyAsync(%d bytes from %#x to %#x, %v)",
		refused.Length, refused.Src, refused.Dst, kind)
}

// firstUnaligned returns how many copies there are before one that is unaligned.
func firstUnaligned(copies []device.Copy) int {
	first := slices.IndexFunc(copies, func(c device.Copy) bool { return (c.Dst|c.Src)%alignment != 0 })
	if first < 0 {
		return len(copies)
	}
	return first
}

// CopyBatch queues the copies in one call, or in several where AscendCL takes fewer at once. After an error other than
// ErrNoBatches, some of them may be queued: CANN queues single copies where the device has no batches.
func (s *stream) CopyBatch(kind device.Kind, copies []device.Copy) error {
	if kind == device.WithinDevice {
		return device.ErrNoBatches
	}
	for some := range slices.Chunk(copies, batchLimit) {
		if err := s.copySome(kind, some); err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) copySome(kind device.Kind, copies []device.Copy) error {
	s.batch.Fill(copies)
	progress := C.kvferry_acl_copy_batch(s.npu.library.acl, kinds[kind], &s.batch.To[0], &s.batch.From[0],
		&s.batch.Lengths[0], C.size_t(len(copies)), C.uint32_t(s.npu.index), s.handle)
	err := s.npu.failed(progress.code, status.Context, "aclrtMemcpyBatchAsync(%d copies, %v)", len(copies), kind)
	return driver.BatchFailure(err, C.ACL_UNSUPPORTED, copies, uint64(progress.index))
}

// rowsLimit is how many rows one call of aclrtMemcpy2dAsync may have: its page in CANN's API reference.
const rowsLimit = 5 << 20

// C takes device.Rows as they are.
var _ = [1]struct{}{}[unsafe.Sizeof(device.Rows{})-C.sizeof_struct_acl_rows]

// CopyMatrix queues the copies of rows in one call.
func (s *stream) CopyMatrix(kind device.Kind, rows device.Rows) error {
	if kind == device.WithinDevice || rows.Count > rowsLimit {
		return device.ErrNoMatrix
	}
	code := C.kvferry_acl_copy_rows(s.npu.library.acl, kinds[kind], (*C.struct_acl_rows)(unsafe.Pointer(&rows)), s.handle)
	if code == C.ACL_UNSUPPORTED {
		return device.ErrNoMatrix
	}
	return s.npu.failed(code, status.Context, "aclrtMemcpy2dAsync(%d rows of %d bytes from %#x to %#x, %v)",
		rows.Count, rows.Length, rows.Src, rows.Dst, kind)
}

// Record queues an event.
func (s *stream) Record(e device.Event) error {
	own := e.(*event)
	own.stream = s
	code := C.kvferry_acl_record_event(s.npu.library.acl, own.handle, s.handle)
	return s.npu.failed(code, status.Context, "aclrtRecordEvent()")
}

// Drain waits for everything that was queued.
func (s *stream) Drain(timeout time.Duration) error {
	code := C.kvferry_acl_synchronize_stream(s.npu.library.acl, s.handle, milliseconds(timeout))
	return s.npu.failed(code, status.Context, "aclrtSynchronizeStreamWithTimeout(%v)", timeout)
}

// Close waits for what is queued, without a limit: Drain comes first.
func (s *stream) Close() error {
	code := C.kvferry_acl_destroy_stream(s.npu.library.acl, s.handle)
	return s.npu.failed(code, status.Context, "aclrtDestroyStream()")
}

// event is a mark in a stream.
type event struct {
	npu    *npu
	handle C.uintptr_t
	stream *stream // in which it was last recorded
}

// Wait waits for the event itself where AscendCL can do that with a timeout. On older releases it waits for all that is
// queued in the event's stream by now: never too short, and longer where more was queued behind the event.
func (e *event) Wait(timeout time.Duration) (done bool, err error) {
	err = e.wait(timeout)
	if driver.FailedWith(err, C.ACL_EVENT_TIMEOUT) || driver.FailedWith(err, C.ACL_STREAM_TIMEOUT) {
		return false, nil
	}
	return err == nil, err
}

func (e *event) wait(timeout time.Duration) error {
	acl := e.npu.library.acl
	if acl.aclrtSynchronizeEventWithTimeout == nil {
		return e.stream.Drain(timeout)
	}
	code := C.kvferry_acl_synchronize_event(acl, e.handle, milliseconds(timeout))
	return e.npu.failed(code, status.Context, "aclrtSynchronizeEventWithTimeout(%v)", timeout)
}

// Close destroys the event.
func (e *event) Close() error {
	code := C.kvferry_acl_destroy_event(e.npu.library.acl, e.handle)
	return e.npu.failed(code, status.Context, "aclrtDestroyEvent()")
}

// milliseconds is a timeout for AscendCL: at least 1, as AscendCL refuses 0 and takes -1 for no timeout.
func milliseconds(timeout time.Duration) C.int32_t {
	limited := min(max(timeout, time.Millisecond), math.MaxInt32*time.Millisecond)
	return C.int32_t((limited + time.Millisecond - 1) / time.Millisecond)
}
