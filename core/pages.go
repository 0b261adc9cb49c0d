package core

import (
	"iter"
	"math"
	"math/bits"
	"slices"

	"kvferry/core/status"
)

// Pages are requests with one opcode and segment, given as pages of several pools: row by row, one request for each pair of
// page numbers at the same index of Local and Remote, which are of one length. Request i of a row moves Length bytes
// between LocalBase + Local[i]*LocalStride in this process and RemoteBase + Remote[i]*RemoteStride in the segment's owner.
type Pages struct {
	Opcode Opcode
	Target SegmentID
	Local  []uint64 // page numbers
	Remote []uint64 // page numbers
	Rows   []PageRow
}

// PageRow is a pool of pages on either side. Its memory layout is that of a row of the C interface: five uint64_t.
type PageRow struct {
	LocalBase    uint64 // address of page 0
	LocalStride  uint64 // bytes from one page to the next
	RemoteBase   uint64
	RemoteStride uint64
	Length       uint64 // bytes moved of each page
}

// Count is the number of requests.
func (p *Pages) Count() int { return len(p.Local) * len(p.Rows) }

// SubmitPages makes a batch and submits all requests to it; on an error there is no batch. The slices of p are not kept. With a
// limit above 0, at most so many requests are submitted at a time: the next ones when these have completed, and none when one of
// them has failed.
func (e *Engine) SubmitPages(p *Pages, limit int) (*Batch, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	b, err := e.AllocateBatch(p.Count())
	if err != nil {
		return nil, err
	}
	if limit <= 0 || limit >= p.Count() {
		err = e.submitPages(b, p, 0, p.Count())
	} else {
		err = e.submitInParts(b, p, limit)
	}
	if err != nil {
		return nil, inOrder(err, e.FreeBatch(b))
	}
	return b, nil
}

// submitInParts has a goroutine of the engine submit the requests, so many at a time, from a copy of p.
func (e *Engine) submitInParts(b *Batch, p *Pages, limit int) error {
	if err := p.Opcode.check(); err != nil {
		return err
	}
	if _, err := e.openTarget(p.Target, len(e.installed()) > 0); err != nil {
		return err
	}
	kept := *p
	kept.Local, kept.Remote, kept.Rows = slices.Clone(p.Local), slices.Clone(p.Remote), slices.Clone(p.Rows)
	return e.feedBatch(b, p.Count(), kept.local(), func(f *feed) error { return e.feedPages(b, f, &kept, limit) })
}

// local are the ranges of this process that the requests move.
func (p *Pages) local() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for _, r := range p.Rows {
			for _, page := range p.Local {
				if !yield(Range{Addr: uintptr(r.LocalBase + page*r.LocalStride), Length: r.Length}) {
					return
				}
			}
		}
	}
}

// feedPages submits the requests in parts, each when the one before has completed.
func (e *Engine) feedPages(b *Batch, f *feed, p *Pages, limit int) error {
	for first := 0; first < p.Count(); first += limit {
		if err := e.submitPages(b, p, first, min(limit, p.Count()-first)); err != nil {
			return err
		}
		b.waitForParts(f)
		if err := b.Err(); err != nil {
			return err
		}
	}
	return nil
}

// submitPages submits count of the requests.
func (e *Engine) submitPages(b *Batch, p *Pages, first, count int) error {
	return e.submit(b, count, nil, func(d *distribution) error { return p.fill(d, first) })
}

// fill writes the requests from first on into the tasks, and distributes them row by row. None of them wraps around: see check.
func (p *Pages) fill(d *distribution, first int) error {
	row, page := first/len(p.Local), first%len(p.Local)
	for done := 0; done < len(d.tasks); row, page = row+1, 0 {
		count := min(len(d.tasks)-done, len(p.Local)-page)
		within := p.fillRow(d.tasks[done:done+count], int32(done), p.Rows[row], page)
		if err := d.run(done, count, within); err != nil {
			return err
		}
		done += count
	}
	if len(d.tasks) == p.Count() && p.goByColumns() {
		if w := d.only(); w != nil {
			p.linkByColumns(w)
		}
	}
	return nil
}

// fillRow writes the requests of a row, from a page on, into tasks, the first of which has index first, and links them. It
// returns the range that holds all of their local memory.
func (p *Pages) fillRow(tasks []Task, first int32, r PageRow, page int) Range {
	local, remote := p.Local[page:][:len(tasks)], p.Remote[page:][:len(tasks)]
	opcode, target := p.Opcode, p.Target
	lowest, highest := uint64(math.MaxUint64), uint64(0)
	for i := range tasks {
		addr := r.LocalBase + local[i]*r.LocalStride
		lowest, highest = min(lowest, addr), max(highest, addr)
		task := &tasks[i] // field by field, without a copy of a request
		task.Opcode, task.Local, task.Target = opcode, uintptr(addr), target
		task.Remote, task.Length = r.RemoteBase+remote[i]*r.RemoteStride, r.Length
		task.Next, task.outstanding = first+int32(i)+1, r.Length
	}
	return Range{Addr: uintptr(lowest), Length: highest - lowest + r.Length}
}

// check returns a status.InvalidArgument for pages that are not valid.
func (p *Pages) check() error {
	if len(p.Local) != len(p.Remote) {
		return status.Errorf(status.InvalidArgument, "%d local and %d remote pages do not match", len(p.Local), len(p.Remote))
	}
	for i, r := range p.Rows {
		if r.Length == 0 || r.LocalStride > math.MaxInt64 || r.RemoteStride > math.MaxInt64 {
			return status.Errorf(status.InvalidArgument,
				"row %d: length %d and strides %d and %d, where a positive length and strides below 2^63 are needed",
				i, r.Length, r.LocalStride, r.RemoteStride)
		}
	}
	if len(p.Local) == 0 || len(p.Rows) == 0 {
		return nil
	}
	if len(p.Rows) > math.MaxInt32/len(p.Local) {
		return status.Errorf(status.InvalidArgument, "%d rows of %d pages are more requests than one call takes, %d",
			len(p.Rows), len(p.Local), math.MaxInt32)
	}
	local, remote := slices.Max(p.Local), slices.Max(p.Remote)
	for i, r := range p.Rows {
		if r.wraps(r.LocalBase, r.LocalStride, local) {
			return status.Errorf(status.InvalidArgument, "row %d: local page %d wraps around the address space", i, local)
		}
		if r.wraps(r.RemoteBase, r.RemoteStride, remote) {
			return status.Errorf(status.InvalidArgument, "row %d: remote page %d wraps around the address space", i, remote)
		}
	}
	return nil
}

// wraps reports whether a page lies beyond the end of the address space.
func (r *PageRow) wraps(base, stride, page uint64) bool {
	over, offset := bits.Mul64(page, stride)
	start, carry := bits.Add64(base, offset, 0)
	return over != 0 || carry != 0 || start+r.Length < start
}
