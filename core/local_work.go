package core

import (
	"errors"

	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/core/metrics"
	"kvferry/core/status"
	"kvferry/core/trace"
)

// localWork copies tasks of one work one after the other. Consecutive tasks often lie in one region: up to a limit, they share a
// pin, and an answer about the signal handlers.
type localWork struct {
	*Work
	transport *localTransport
	route     localRoute
	atOnce    bool // only what will most likely not wait for a page is copied

	copier hostmem.Copier
	pinned *Region // nil when none is pinned
	op     Opcode  // what the region is pinned for
	left   uint64  // what may still be copied by this pin
	offer  *Offer  // used by the pinned task; nil where the work has no key
}

// What is copied by one pin takes some microseconds: no longer than an answer about the signal handlers counts. A task counts as
// pinTask bytes more than it has.
const (
	pinBytes = 64 << 10
	pinTask  = 1 << 10
)

// copyPresent copies the tasks of a work up to the first one that may have to wait for a page. It returns that task, and how many
// bytes it and the tasks after it have.
func (t *localTransport) copyPresent(w *Work) (rest int32, left uint64) {
	c := localWork{Work: w, transport: t, atOnce: true}
	defer c.unpin()
	left = w.Bytes
	for rest = w.Head; rest >= 0; rest = w.Tasks[rest].Next {
		if !c.copyOne(rest) {
			break
		}
		left -= w.Tasks[rest].Length
	}
	return rest, left
}

// copyFrom copies a task and those that follow it in the work.
func (t *localTransport) copyFrom(w *Work, first int32, route localRoute) {
	if w.Transfer != nil {
		t.copyTransfer(w)
		return
	}
	c := localWork{Work: w, transport: t, route: route}
	defer c.unpin()
	for i := first; i >= 0; i = w.Tasks[i].Next {
		c.copyOne(i)
	}
}

// copyAlone copies one task.
func (t *localTransport) copyAlone(w *Work, i int32, route localRoute) {
	c := localWork{Work: w, transport: t, route: route}
	defer c.unpin()
	c.copyOne(i)
}

// copyOne copies a task, or adds it to the queue of another route if it belongs there. It returns false if the task is left as it
// was, because the copy may have to wait for a page.
func (c *localWork) copyOne(i int32) bool {
	t, w, r := c.transport, c.Work, &c.Tasks[i].Request
	err := c.pin(r)
	if err == nil {
		own := localRoute{local: c.device, remote: c.pinned.Device}
		if own != c.route && t.queue(own, func() { t.copyAlone(w, i, own) }) {
			c.unpin()
			return true
		}
		began := w.trace.Now()
		var done bool
		if done, err = c.copyTask(r); !done {
			return false
		}
		w.trace.Copied(trace.Local, "", r.Length, began)
	}
	if err == nil {
		t.segment.counters.Add(metrics.BytesOf(metrics.Operation(r.Opcode), metrics.Local), r.Length)
		w.Went(metrics.Local)
	}
	c.Settle(i, 0, r.Length, err)
	return true
}

// pin checks the remote range of a task, and pins its region, unless the pin of the task before it will do.
func (c *localWork) pin(r *Request) (err error) {
	if c.Key != (layout.Key{}) {
		return c.pinOffered(r)
	}
	cost := r.Length + pinTask
	if c.pinned != nil && c.op == r.Opcode && cost <= c.left && c.pinned.Holds(r.Remote, r.Length) {
		c.left -= cost
		return nil
	}
	c.unpin()
	c.copier.Renew()
	c.op, c.left = r.Opcode, pinBytes-min(cost, pinBytes)
	c.pinned, err = c.transport.memory.PinRemote(r.Remote, r.Length, r.Opcode)
	return err
}

// pinOffered pins the region of the remote range of a task, and begins to use the offer.
func (c *localWork) pinOffered(r *Request) (err error) {
	c.unpin()
	c.copier.Renew()
	if c.pinned, err = c.transport.memory.PinOffered(r.Remote, r.Length); err != nil {
		return err
	}
	memory := hostmem.Strided{Base: uintptr(r.Remote), Run: r.Length}
	c.offer, err = c.transport.memory.UseOffer(c.Key, c.ID, r.Opcode, &memory)
	return err
}

func (c *localWork) unpin() {
	if c.offer != nil {
		c.offer.End()
		c.offer = nil
	}
	if c.pinned != nil {
		c.pinned.Unpin()
		c.pinned = nil
	}
}

// copyTask copies the bytes of a task. It returns false if nothing was copied, because that may have to wait for a page.
func (c *localWork) copyTask(r *Request) (done bool, err error) {
	dst, src := place{uintptr(r.Remote), c.pinned.Device}, place{r.Local, c.device}
	if r.Opcode == Read {
		dst, src = src, dst
	}
	if !c.atOnce {
		return true, c.copyInSteps(dst, src, r.Length)
	}
	if err := c.Aborted(); err != nil {
		return true, err
	}
	done, err = c.copier.CopyPresent(dst.addr, src.addr, r.Length)
	return done, copyError(dst.addr, src.addr, r.Length, err)
}

func (c *localWork) copyInSteps(dst, src place, length uint64) error {
	copy, err := c.transport.leases.open(dst, src, length)
	if err != nil {
		return err
	}
	defer copy.release()
	for done := uint64(0); done < length; {
		if err := c.Aborted(); err != nil {
			return err
		}
		part := min(copy.maxStep(), length-done)
		at := uintptr(done)
		if dst.addr > src.addr { // from the end, so that no step overwrites bytes that a later one reads
			at = uintptr(length - done - part)
		}
		if err := copy.copyStep(at, part); err != nil {
			return err
		}
		done += part
	}
	return nil
}

// CopyMemory copies length bytes, as memmove does. Addresses that are not mapped give an error, not a crash. It may wait until a
// page is loaded; other goroutines run meanwhile.
func CopyMemory(dst, src uintptr, length uint64) error {
	if dst == 0 || src == 0 {
		return copyError(dst, src, length, errNull)
	}
	var copier hostmem.Copier
	return copyError(dst, src, length, copier.Copy(dst, src, length))
}

var errNull = errors.New("no memory is at NULL")

// copyError says which copy has failed; nil for nil.
func copyError(dst, src uintptr, length uint64, reason error) error {
	if reason == nil {
		return nil
	}
	return status.Errorf(status.InvalidArgument, "copying %d bytes from %#x to %#x: %w", length, src, dst, reason)
}
