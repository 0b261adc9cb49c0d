package cuda

// #include "cuda.h"
import "C"

import (
	"errors"
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
//  3. Wait, on another thread, waits until the device has reached the event (wait.go);
//  4. Drain waits for the whole stream, and Close destroys it.

// kinds are C's numbers for the directions, each with the function that copies in it.
var kinds = [...]struct {
	kind     C.enum_cuda_kind
	function string
}{
	device.HostToDevice: {C.CUDA_HOST_TO_DEVICE, "cuMemcpyHtoDAsync"},
	device.DeviceToHost: {C.CUDA_DEVICE_TO_HOST, "cuMemcpyDtoHAsync"},
	device.WithinDevice: {C.CUDA_WITHIN_DEVICE, "cuMemcpyDtoDAsync"},
}

// stream is a queue of copies. It retains the context: where copies never end and the stream is never closed, the memory
// that they access stays.
type stream struct {
	gpu     *gpu
	handle  C.uintptr_t
	context C.uintptr_t
	drained *event // of Drain, recorded behind all copies
	kernels bool   // it uses those of the gpu
	peers   []peer // whose memory it can access

	// Of the call in progress.
	batch   driver.Batch[C.uintptr_t, C.size_t]
	extents []device.Copy
}

// C takes a device.Copy as it is.
var _ = [1]struct{}{}[unsafe.Sizeof(device.Copy{})-C.sizeof_struct_cuda_copy]

// Copy queues the copies up to the first that is refused.
func (s *stream) Copy(kind device.Kind, copies []device.Copy) (issued int, err error) {
	list := (*C.struct_cuda_copy)(unsafe.Pointer(unsafe.SliceData(copies)))
	progress := C.kvferry_cuda_copy(s.gpu.library.cuda, kinds[kind].kind, list, C.size_t(len(copies)), s.handle)
	issued = int(progress.index)
	if issued == len(copies) {
		return issued, nil
	}
	refused := copies[issued]
	return issued, s.gpu.failed(progress.code, status.Context, "%s(%d bytes from %#x to %#x)",
		kinds[kind].function, refused.Length, refused.Src, refused.Dst)
}

// CopyBatch queues the copies in one call. After an error other than ErrNoBatches, some of them may be queued.
func (s *stream) CopyBatch(kind device.Kind, copies []device.Copy) error {
	if len(copies) == 0 {
		return nil
	}
	s.batch.Fill(copies)
	progress := C.kvferry_cuda_copy_batch(s.gpu.library.cuda, &s.batch.To[0], &s.batch.From[0],
		&s.batch.Lengths[0], C.size_t(len(copies)), s.handle)
	err := s.gpu.failed(progress.code, status.Context, "cuMemcpyBatchAsync(%d copies, %v)", len(copies), kind)
	return driver.BatchFailure(err, C.CUDA_NOT_SUPPORTED, copies, uint64(progress.index))
}

// Record queues an event.
func (s *stream) Record(e device.Event) error {
	code := C.kvferry_cuda_record_event(s.gpu.library.cuda, e.(*event).handle, s.handle)
	return s.gpu.failed(code, status.Context, "cuEventRecord()")
}

// Drain waits for everything that was queued.
func (s *stream) Drain(timeout time.Duration) error {
	if err := s.Record(s.drained); err != nil {
		return err
	}
	done, err := s.drained.Wait(timeout)
	if err == nil && !done {
		err = status.Errorf(status.Context, "%s: the stream has not come to rest within %v", gpus.NameOf(s.gpu.index), timeout)
	}
	return err
}

// Close waits for what is queued, without a timeout, since cuStreamDestroy does not. It releases the rest even where the
// wait fails.
func (s *stream) Close() error {
	code := C.kvferry_cuda_synchronize_stream(s.gpu.library.cuda, s.handle)
	err := s.gpu.failed(code, status.Context, "cuStreamSynchronize()")
	return errors.Join(err, s.drained.Close(), s.releaseKernels(), s.destroy())
}

func (s *stream) destroy() error {
	code := C.kvferry_cuda_destroy_stream(s.gpu.library.cuda, s.handle)
	return errors.Join(s.gpu.failed(code, status.Context, "cuStreamDestroy()"), s.leavePeers(), s.gpu.release())
}
