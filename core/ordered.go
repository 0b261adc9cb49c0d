package core

import (
	"slices"
	"sync"
	"time"

	"kvferry/core/device"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// A transfer in the order of a stream of the application goes this way:
//
//  1. Order copies the requests, and has the stream's library call back when the stream has come to that place;
//  2. run, on a thread of that library, submits the requests and waits for their end, and so does the stream;
//  3. what failed is logged, and returned by the next Order: the stream itself goes on, and cannot tell anybody.
//
// Where the device fails before the stream has come to the place, there is no call: nobody waits for it, and the library
// tells whoever uses the stream.

// ordered is what became of an engine's transfers in the order of streams.
type ordered struct {
	mu      sync.Mutex
	failure error // of the first that failed since the latest Order
	more    int   // how many others did
}

// Order starts a transfer in the order of a stream of the application: after what is queued in the stream by now, and
// before what is queued later. It does not wait. runtime is whose stream it is, "cuda", and stream the library's own
// handle, 0 for its default stream. The arrays are not kept; the memory that they name is in use until the stream has
// gone on. The transfer is given up after Config.TransferTimeout and a second for each GiB.
//
// The error is why nothing was queued: status.Context with ErrEarlierFailed in it where an earlier transfer on any
// stream had failed and nobody had been told yet; the next call then starts afresh.
func (e *Engine) Order(runtime string, stream uintptr, a *Arrays) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	if err := e.ordered.takeFailure(); err != nil {
		return err
	}
	if a.Opcode != Read && a.Opcode != Write {
		return status.Errorf(status.InvalidArgument, "opcode %d is neither READ nor WRITE", a.Opcode)
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
	return library.Call(stream, func() { e.runOrdered(&own) })
}

// ordering is the runtime of that name, where it has streams that can be waited with.
func (d *devices) ordering(name string) (device.Ordering, error) {
	for _, r := range d.runtimes {
		if library, able := r.(device.Ordering); able && r.Name() == name {
			return library, nil
		}
	}
	return nil, status.Errorf(status.NotSupportedTransport, "this engine has no streams of %q", name)
}

// runOrdered does a transfer whose turn in its stream has come.
func (e *Engine) runOrdered(a *Arrays) {
	if !e.enter() {
		return // nobody is left to be told
	}
	defer e.running.Done()
	if err := status.Guard(func() error { return e.moveNow(a) }); err != nil {
		e.log.Error("a transfer in the order of a stream failed, and the stream goes on", zap.Error(err))
		e.ordered.fail(err)
	}
}

// moveNow moves the bytes and waits for that.
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

// await waits for the end of the batch: why it failed, or that the time is over.
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

// takeFailure tells once of the failures so far.
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
