package core

import (
	"errors"

	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/core/metrics"
	"kvferry/core/staging"
	"kvferry/core/status"
	"kvferry/core/trace"
)

// localWork copies tasks of one work one after the other. Consecutive tasks often lie in one region: up to a limit, they share a
// pin, and an answer about the signal handlers. Small ones from device to device share a job (local_direct.go).
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

	direct directTasks
	others localStretch
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
	c.passOn()
	return rest, left
}

// copyStretch copies tasks that were queued.
func (t *localTransport) copyStretch(s *localStretch) {
	if s.work.Transfer != nil {
		t.copyTransfer(s.work)
		return
	}
	c := localWork{Work: s.work, transport: t, route: s.route}
	defer c.unpin()
	for i, left := s.first, s.count; i >= 0 && left > 0; left-- {
		next := s.work.Tasks[i].Next
		c.copyOne(i)
		i = next
	}
	c.copyDirect()
	c.passOn()
}

// copyOne copies a task, or adds it to those of another route, or to those that are copied together. It returns false if the task
// is left as it was, because the copy may have to wait for a page.
func (c *localWork) copyOne(i int32) bool {
	r := &c.Tasks[i].Request
	err := c.pin(r)
	if err == nil {
		if own := (localRoute{local: c.device, remote: c.pinned.Device}); own != c.route {
			c.unpin()
			c.addOther(i, own)
			return true
		}
	}
	c.passOn()
	if err == nil && c.addDirect(i) {
		return true
	}
	c.copyDirect() // tasks are copied in their order
	if err == nil {
		began := c.trace.Now()
		var done bool
		if done, err = c.copyTask(r); !done {
			return false
		}
		c.trace.Copied(trace.Local, "", r.Length, began)
	}
	c.settleOne(i, err)
	return true
}

// settleOne ends a task.
func (c *localWork) settleOne(i int32, err error) {
	r := &c.Tasks[i].Request
	if err == nil {
		c.transport.segment.counters.Add(metrics.BytesOf(metrics.Operation(r.Opcode), metrics.Local), r.Length)
		c.Went(metrics.Local)
	}
	c.Settle(i, 0, r.Length, err)
}

// addOther adds a task to those that are passed on to another route together.
func (c *localWork) addOther(i int32, route localRoute) {
	c.copyDirect()
	if c.others.route != route {
		c.passOn()
	}
	if c.others.count == 0 {
		c.others = localStretch{work: c.Work, first: i, route: route}
	}
	c.others.count++
	c.others.bytes += c.Tasks[i].Length
}

// passOn adds the tasks of another route to its queue.
func (c *localWork) passOn() {
	s := c.others
	c.others = localStretch{}
	if s.count > 0 {
		c.transport.queue(s)
	}
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
	dst, src := c.places(r, c.pinned)
	if !c.atOnce {
		return true, c.copyInSteps(dst, src, r.Length)
	}
	if err := c.Aborted(); err != nil {
		return true, err
	}
	done, err = c.copier.CopyPresent(dst.addr, src.addr, r.Length)
	return done, copyError(dst.addr, src.addr, r.Length, err)
}

// places are where the bytes of a task go to, and come from.
func (c *localWork) places(r *Request, remote *Region) (dst, src place) {
	dst, src = place{uintptr(r.Remote), remote.Device}, place{r.Local, c.device}
	if r.Opcode == Read {
		dst, src = src, dst
	}
	return dst, src
}

func (c *localWork) copyInSteps(dst, src place, length uint64) error {
	copy, err := c.transport.leases.open(dst, src, length)
	if err != nil {
		return err
	}
	defer copy.release()
	// From the end, so that no step overwrites bytes that a later one reads. Source and destination of a direct copy do not overlap,
	// and its steps have to begin aligned if it does.
	fromEnd := dst.addr > src.addr && !copy.direct
	var refused error
	for done := uint64(0); done < length; {
		if err := c.Aborted(); err != nil {
			return err
		}
		part := min(copy.maxStep(), length-done)
		at := uintptr(done)
		if fromEnd {
			at = uintptr(length - done - part)
		}
		err := copy.copyStep(at, part)
		if copy.direct && staging.IsRefused(err) {
			refused = err
			err, part = c.transport.leases.stage(&copy, length-done), 0
		}
		if err != nil {
			return err
		}
		done += part
	}
	if refused != nil {
		dst.on.Separate(src.on, refused)
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
