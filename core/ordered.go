package core

import (
	"slices"
	"strings"
	"sync"
	"time"

	"kvferry/core/device"
	"kvferry/core/staging"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// A transfer in the order of a stream of the application:
//
//  1. Order has the devices prepared, copies the requests, and queues a callback in the stream.
//  2. The stream's library calls runOrdered on one of its threads when the stream has come to the callback. runOrdered submits the
//     requests and waits for their end. The stream waits until it returns.
//  3. A failure is logged, and the next call of Order returns it. The stream goes on: it has no way to report the failure.
//
// If the device fails before the stream has come to the callback, it is not called. The library then returns an error to the
// application.

// ordered has the failures of an engine's transfers in the order of streams.
type ordered struct {
	mu      sync.Mutex
	failure error // of the first transfer that failed since the latest call of Order
	more    int   // how many others failed
}

// Order starts a transfer in the order of a stream of the application: after the work that is in the stream now, and before work
// that is queued later. It does not wait for the stream. The first call
// waits until the devices are prepared. runtime is the library of the stream, "cuda", and stream that library's handle, 0 for
// its default stream. The arrays are not kept; the memory that they name is in use until the stream has gone on. The transfer is
// given up after Config.TransferTimeout and a second for each GiB.
//
// An error says why nothing was queued. It is a status.Context with ErrEarlierFailed in it if an earlier transfer on any stream
// has failed, and no call has returned that yet. The next call then queues its transfer.
func (e *Engine) Order(runtime string, stream uintptr, a *Arrays) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	if err := e.ordered.takeFailure(); err != nil {
		return err
	}
	if err := a.Opcode.check(); err != nil {
		return err
	}
	if len(a.Local) == 0 {
		return nil
	}
	if _, err := e.target(a.Target, len(e.installed()) > 0); err != nil {
		return err
	}
	library, err := e.devices.ordering(runtime)
	if err != nil {
		return err
	}
	own := *a
	own.Local, own.Remote, own.Lengths = slices.Clone(a.Local), slices.Clone(a.Remote), slices.Clone(a.Lengths)
	e.devices.prepare(runtime, a.Target == LocalSegment)
	return library.Call(stream, func() { e.runOrdered(&own) })
}

// ordering is the runtime of that name, if its streams can call back.
func (d *devices) ordering(name string) (device.Ordering, error) {
	for _, r := range d.runtimes {
		if library, able := r.(device.Ordering); able && r.Name() == name {
			return library, nil
		}
	}
	return nil, status.Errorf(status.NotSupportedTransport, "this engine has no streams of %q", name)
}

// prepare prepares the devices of a runtime for jobs, and for copies from one to another if there will be some. Afterwards their
// first jobs wait for no stream of the application.
func (d *devices) prepare(runtime string, direct bool) {
	var all []*staging.Device
	d.mu.Lock()
	for name, on := range d.staged {
		if strings.HasPrefix(name, runtime+":") {
			all = append(all, on)
		}
	}
	d.mu.Unlock()
	for _, on := range all {
		on.Prepare()
		if direct {
			on.PrepareDirect(all)
		}
	}
}

// runOrdered makes a transfer, when the stream has come to it.
func (e *Engine) runOrdered(a *Arrays) {
	if !e.enter() {
		return // the engine is closed, and Order is not called any more
	}
	defer e.running.Done()
	if err := status.Guard(func() error { return e.moveNow(a) }); err != nil {
		e.log.Error("a transfer in the order of a stream failed, and the stream goes on", zap.Error(err))
		e.ordered.fail(err)
	}
}

// moveNow moves the bytes, and waits until they have arrived.
func (e *Engine) moveNow(a *Arrays) error {
	b, err := e.AllocateBatch(len(a.Local))
	if err != nil {
		return err
	}
	if err = e.SubmitArrays(b, a, nil); err == nil {
		err = b.await(e.config.TransferTimeout + time.Duration(b.bytes.Load()>>30)*time.Second)
	}
	if discarded := e.DiscardBatch(b); err == nil {
		err = discarded
	}
	return err
}

// await waits for the end of the batch, and returns why it failed, or that the time is over.
func (b *Batch) await(limit time.Duration) error {
	if !b.wait(limit) {
		return status.Errorf(status.Context, "batch %d was not done within %v", b.id, limit)
	}
	return b.Err()
}

func (o *ordered) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failure == nil {
		o.failure = err
	} else {
		o.more++
	}
}

// takeFailure returns the failures so far, once.
func (o *ordered) takeFailure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	err, more := o.failure, o.more
	o.failure, o.more = nil, 0
	switch {
	case err == nil:
		return nil
	case more > 0:
		return status.Errorf(status.Context, "%w, and so did %d others: %w", ErrEarlierFailed, more, err)
	}
	return status.Errorf(status.Context, "%w: %w", ErrEarlierFailed, err)
}
