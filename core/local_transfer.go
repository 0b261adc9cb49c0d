package core

import (
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/core/metrics"
	"kvferry/core/status"
)

// transferStep is how much of a transfer of a plan is copied between two looks at whether it is given up. It passes through a
// buffer that stays in the processor's cache.
const transferStep = 64 << 10

// copyTransfer copies a transfer of a plan within this process.
func (t *localTransport) copyTransfer(w *Work) {
	op := w.Tasks[w.Head].Opcode
	c := transferCopy{Work: w, memory: t.memory, op: op, buffer: make([]byte, transferStep)}
	parts := w.Transfer.Parts()
	for left := w.Bytes; left > 0; {
		part := parts.Cut(transferStep, c.isOpen)
		err := w.Aborted()
		if err == nil {
			err = c.copy(&part)
		}
		if err != nil {
			w.Settle(w.Head, 0, left, err)
			return
		}
		t.segment.counters.Add(metrics.BytesOf(metrics.Operation(op), metrics.Local), part.Bytes())
		w.Went(metrics.Local)
		w.Settle(w.Head, 0, part.Bytes(), nil)
		left -= part.Bytes()
	}
}

// transferCopy copies parts of patterns between two places of this process.
type transferCopy struct {
	*Work
	memory *Registry
	op     Opcode
	buffer []byte
	copier hostmem.Copier
}

// pin pins the region that the remote side of a part lies in.
func (c *transferCopy) pin(part *layout.Pattern) (*Region, error) {
	_, remote := Sides(c.op, part)
	addr, length := remote.Bounds()
	if c.Key != (layout.Key{}) {
		return c.memory.PinOffered(uint64(addr), length)
	}
	return c.memory.PinRemote(uint64(addr), length, c.op)
}

// isOpen reports whether a part lies in one region that is open to such a transfer.
func (c *transferCopy) isOpen(part *layout.Pattern) bool {
	region, err := c.pin(part)
	if err == nil {
		region.Unpin()
	}
	return err == nil
}

func (c *transferCopy) copy(part *layout.Pattern) error {
	region, err := c.pin(part)
	if err != nil {
		return err
	}
	defer region.Unpin()
	local, remote := Sides(c.op, part)
	if c.Key != (layout.Key{}) {
		offer, err := c.memory.UseOffer(c.Key, c.ID, c.op, &remote)
		if err != nil {
			return err
		}
		defer offer.End()
	}
	if region.Device != nil {
		return status.Errorf(status.InvalidArgument, "memory range %v was registered as that of %s after the transfer began",
			region.Range, region.Device.Name())
	}
	from, to := &local, &remote
	if c.op == Read {
		from, to = to, from
	}
	buffer := c.buffer[:part.Bytes()]
	if err := c.copier.Gather(buffer, from, 0); err != nil {
		return status.Errorf(status.InvalidArgument, "copying %d bytes from %#x: %w", len(buffer), from.Base, err)
	}
	if err := c.copier.Scatter(to, 0, buffer); err != nil {
		return status.Errorf(status.InvalidArgument, "copying %d bytes to %#x: %w", len(buffer), to.Base, err)
	}
	return nil
}
