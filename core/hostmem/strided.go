package hostmem

import (
	"cmp"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"unsafe"

	"kvferry/core/threads"

	"golang.org/x/sys/unix"
)

// Strided memory, such as the heads of one rank in the cache of another, is packed into a buffer of the library, and
// unpacked from one:
//
//  1. Gather and Scatter go through the memory row by row (stream). A row is the runs along the innermost axis.
//  2. A row whose pages may be touched is copied by a plain loop (runs.go). Pages that were not touched within the last second are
//     brought in first, a row at a time (mayTouchRow).
//  3. Other runs are collected, and one system call copies up to mostSlow of them (slowRuns).

// MaxAxes is how many axes strided memory has at most.
const MaxAxes = 5

// Axis is how often memory repeats in one direction, and the bytes from one time to the next.
type Axis struct {
	Count  uint64
	Stride int64
}

// Strided is runs of bytes of one length at regular places: one for each combination of indices of the axes, the
// outermost axis first. In this order the bytes of the runs are its stream. The owner has checked that no address
// wraps around.
type Strided struct {
	Base  uintptr // of the first run
	Run   uint64  // bytes
	Axes  [MaxAxes]Axis
	Count int // of the axes
}

// Bytes is how many bytes the stream has.
func (s *Strided) Bytes() uint64 {
	bytes := s.Run
	for _, a := range s.Axes[:s.Count] {
		bytes *= a.Count
	}
	return bytes
}

// Merge makes longer runs of those that lie together and follow each other in the stream, and one axis of two of which the inner one
// goes on where the outer one's next step is. The stream stays the same.
func (s *Strided) Merge() {
	merged := Strided{Base: s.Base, Run: s.Run}
	first := MaxAxes // of the axes so far, which are the last ones of the array
	for i := s.Count - 1; i >= 0; i-- {
		axis := s.Axes[i]
		switch {
		case axis.Count == 1:
		case first == MaxAxes && axis.Stride == int64(merged.Run):
			merged.Run *= axis.Count
		case first < MaxAxes && axis.Stride == merged.Axes[first].Stride*int64(merged.Axes[first].Count):
			merged.Axes[first].Count *= axis.Count
		default:
			first--
			merged.Axes[first] = axis
		}
	}
	merged.Count = copy(merged.Axes[:], merged.Axes[first:])
	clear(merged.Axes[merged.Count:])
	*s = merged
}

// Bounds are the first address of the memory, and the number of bytes from there to its end, gaps included.
func (s *Strided) Bounds() (addr uintptr, length uint64) {
	addr, length = s.Base, s.Run
	for _, a := range s.Axes[:s.Count] {
		span := (a.Count - 1) * magnitude(a.Stride)
		length += span
		if a.Stride < 0 {
			addr -= uintptr(span)
		}
	}
	return addr, length
}

// IsDisjoint reports whether it is certain that no byte belongs to two runs: each axis steps over all that the axes with shorter
// strides span.
func (s *Strided) IsDisjoint() bool {
	sorted, extent := s.ByStride(), s.Run
	for i := s.Count - 1; i >= 0; i-- {
		axis := sorted.Axes[i]
		if axis.Count > 1 && magnitude(axis.Stride) < extent {
			return false
		}
		extent += (axis.Count - 1) * magnitude(axis.Stride)
	}
	return true
}

// ByStride are the same runs in another order: the longer the stride of an axis, the further out it is. Whoever looks at parts
// along the outermost axis, and so on, then finds those that lie close together undivided.
func (s Strided) ByStride() Strided {
	slices.SortStableFunc(s.Axes[:s.Count], func(a, b Axis) int { return cmp.Compare(magnitude(b.Stride), magnitude(a.Stride)) })
	return s
}

func magnitude(stride int64) uint64 {
	if stride < 0 {
		return -uint64(stride)
	}
	return uint64(stride)
}

// Within reports whether each run lies in a range for which holds is true. It asks about as few ranges as it can: about that
// of all runs, and about those of parts where that is too long.
func (s *Strided) Within(holds func(addr uintptr, length uint64) bool) bool {
	if holds(s.Bounds()) {
		return true
	}
	if s.Count == 0 {
		return false
	}
	outer, inner := s.Axes[0], *s
	copy(inner.Axes[:], s.Axes[1:])
	inner.Count--
	for range outer.Count {
		if !inner.Within(holds) {
			return false
		}
		inner.Base += uintptr(outer.Stride)
	}
	return true
}

// Runs are the addresses of the runs, in the order of the stream.
func (s *Strided) Runs() iter.Seq[uintptr] {
	return func(yield func(uintptr) bool) {
		at := s.find(0)
		for left := s.Bytes() / s.Run; left > 0; {
			rest, stride := at.row()
			for i := range rest {
				if !yield(at.addr + uintptr(i*uint64(stride))) {
					return
				}
			}
			at.advance(rest)
			left -= rest
		}
	}
}

// Cut is the part of the stream that begins at a position within it, has at most so many bytes, 1 or more, and is strided memory
// itself: as long a part as there is.
func (s *Strided) Cut(at, most uint64) Strided {
	first, skip := s.find(at/s.Run), at%s.Run
	if skip > 0 || most < s.Run {
		return Strided{Base: first.addr + uintptr(skip), Run: min(s.Run-skip, most)}
	}
	part := Strided{Base: first.addr, Run: s.Run}
	runs, begin := most/s.Run, s.Count
	for i := s.Count - 1; i >= 0; i-- {
		axis := s.Axes[i]
		whole := axis.Count
		axis.Count = min(whole-first.step[i], runs)
		if axis.Count > 1 || whole == 1 {
			begin, part.Axes[i] = i, axis
		}
		if axis.Count < whole {
			break
		}
		runs /= whole
	}
	part.Count = copy(part.Axes[:], part.Axes[begin:s.Count])
	clear(part.Axes[part.Count:])
	return part
}

// Gather copies the bytes from position from on of a stream into to, which is memory of the Go heap. Where memory cannot
// be read, an error wraps EFAULT.
func (c *Copier) Gather(to []byte, s *Strided, from uint64) error {
	return c.stream(s, from, to, Reading)
}

// Scatter copies bytes of the Go heap to the position to of a stream. Where memory cannot be written, an error wraps EFAULT,
// and some of the bytes may have been copied.
func (c *Copier) Scatter(s *Strided, to uint64, bytes []byte) error {
	return c.stream(s, to, bytes, Writing)
}

// row is runs at regular places of strided memory, and where their bytes are in a buffer.
type row struct {
	addr   uintptr
	stride int64
	run    uint64
	count  uint64
	buffer uintptr
}

// stream copies between a buffer and the stream from position at on.
func (c *Copier) stream(s *Strided, at uint64, buffer []byte, a Access) (err error) {
	if len(buffer) == 0 {
		return nil
	}
	c.Renew()
	c.renewed()
	if c.slow == nil {
		c.slow = &slowRuns{}
	}
	slow := c.slow
	slow.access, slow.now, slow.count, slow.bytes = a, c.now, 0, 0
	fault := Guard(func() { err = c.rows(s, at, buffer, slow) })
	if a == Writing {
		orderStreams()
	}
	if err == nil {
		err = fault
	}
	if err == nil {
		err = slow.copy()
	}
	runtime.KeepAlive(buffer)
	return err
}

// rows cuts a part of the stream into rows, and copies each. The part may begin and end within a run.
func (c *Copier) rows(s *Strided, at uint64, buffer []byte, slow *slowRuns) error {
	place := AddressOf(buffer)
	left := uint64(len(buffer))
	next, skip := s.find(at/s.Run), at%s.Run
	for left > 0 {
		rest, stride := next.row()
		r := row{addr: next.addr, stride: stride, run: s.Run, count: min(rest, left/s.Run), buffer: place}
		if skip > 0 || r.count == 0 { // a part of one run
			r.addr += uintptr(skip)
			r.run, r.count = min(s.Run-skip, left), 1
			skip = 0
		}
		if err := c.row(&r, slow); err != nil {
			return err
		}
		next.advance(r.count)
		place += uintptr(r.run * r.count)
		left -= r.run * r.count
	}
	return nil
}

// position is where one of the runs lies.
type position struct {
	of   *Strided
	addr uintptr
	step [MaxAxes]uint64 // along each axis
}

// find is the position of a run by its number.
func (s *Strided) find(number uint64) position {
	p := position{of: s, addr: s.Base}
	for i := s.Count - 1; i >= 0; i-- {
		axis := s.Axes[i]
		p.step[i] = number % axis.Count
		number /= axis.Count
		p.addr += uintptr(p.step[i] * uint64(axis.Stride))
	}
	return p
}

// row is how many runs there are from this one to the last one along the innermost axis, and the bytes from one to the next.
func (p *position) row() (rest uint64, stride int64) {
	last := p.of.Count - 1
	if last < 0 {
		return 1, 0
	}
	return p.of.Axes[last].Count - p.step[last], p.of.Axes[last].Stride
}

// advance goes on by runs of a row, at most to the first one of the next row. Behind the last row it is at the first one.
func (p *position) advance(runs uint64) {
	for i := p.of.Count - 1; i >= 0; i-- {
		axis := p.of.Axes[i]
		p.addr += uintptr(runs * uint64(axis.Stride))
		if p.step[i] += runs; p.step[i] < axis.Count {
			return
		}
		p.step[i], runs = 0, 1
		p.addr -= uintptr(axis.Count * uint64(axis.Stride))
	}
}

// row copies a row, or adds its runs to those for system calls. Where other pages lie between the runs, each run is a row.
func (c *Copier) row(r *row, slow *slowRuns) error {
	if r.count == 1 || magnitude(r.stride) < r.run+uint64(pageSize) {
		return c.rowOfPages(r, slow)
	}
	one := row{addr: r.addr, run: r.run, count: 1, buffer: r.buffer}
	for range r.count {
		if err := c.rowOfPages(&one, slow); err != nil {
			return err
		}
		one.addr += uintptr(r.stride)
		one.buffer += uintptr(r.run)
	}
	return nil
}

// rowOfPages is row for runs without other pages between them.
func (c *Copier) rowOfPages(r *row, slow *slowRuns) error {
	if !c.mayTouchRow(r, slow.access) {
		return slow.add(r)
	}
	if slow.access == Reading {
		copyRuns(r.buffer, uintptr(r.run), r.addr, uintptr(r.stride), uintptr(r.run), r.count)
	} else {
		spreadRuns(r.addr, uintptr(r.stride), r.buffer, uintptr(r.run), r.count)
	}
	return nil
}

// mayTouchRow reports whether a row may be touched. It touches every page from its first to its last byte.
func (c *Copier) mayTouchRow(r *row, a Access) bool {
	if !c.trusted {
		return false
	}
	addr, length := r.addr, r.run
	if r.count > 1 {
		length += (r.count - 1) * magnitude(r.stride)
		if r.stride < 0 {
			addr -= uintptr(length - r.run)
		}
	}
	return c.now.Seen(addr, length, a) || c.BringIn(addr, length, a)
}

// mostSlow is how many runs one system call copies.
const mostSlow = 256

// slowRuns are runs that system calls copy. Their bytes are consecutive in the buffer.
type slowRuns struct {
	access  Access
	now     Time
	buffer  uintptr // of the first run
	bytes   uint64  // of all runs
	vectors [mostSlow]vector
	count   int
}

// add adds the runs of a row, and copies what does not fit any more.
func (r *slowRuns) add(more *row) error {
	for i := range more.count {
		place := more.buffer + uintptr(i*more.run)
		if r.count == mostSlow || r.count > 0 && r.buffer+uintptr(r.bytes) != place {
			if err := r.copy(); err != nil {
				return err
			}
		}
		if r.count == 0 {
			r.buffer = place
		}
		r.vectors[r.count] = vector{more.addr + uintptr(i*uint64(more.stride)), more.run}
		r.count++
		r.bytes += more.run
	}
	return nil
}

// copy copies the runs.
func (r *slowRuns) copy() error {
	runs := r.vectors[:r.count]
	if len(runs) > 1 && r.copyAtOnce() {
		for _, v := range runs {
			r.now.Note(v.base, v.length, r.access)
		}
	} else if err := r.copyOneByOne(); err != nil {
		return err
	}
	r.count, r.bytes = 0, 0
	return nil
}

// copyAtOnce copies all runs by one system call. It returns false if that was not possible, and some were copied.
func (r *slowRuns) copyAtOnce() bool {
	if forbidden.Load() {
		return false
	}
	threads.Enter()
	defer threads.Leave()
	call := uintptr(unix.SYS_PROCESS_VM_WRITEV)
	if r.access == Writing {
		call = unix.SYS_PROCESS_VM_READV
	}
	buffer := vector{r.buffer, r.bytes}
	n, _, errno := unix.Syscall6(call, uintptr(unix.Getpid()), uintptr(unsafe.Pointer(&r.vectors)), uintptr(r.count),
		uintptr(unsafe.Pointer(&buffer)), 1, 0)
	if errno == unix.EPERM || errno == unix.ENOSYS {
		forbidden.Store(true)
	}
	return errno == 0 && uint64(n) == r.bytes
}

// copyOneByOne copies each run by itself.
func (r *slowRuns) copyOneByOne() error {
	place := r.buffer
	for _, v := range r.vectors[:r.count] {
		dst, src := place, v.base
		if r.access == Writing {
			dst, src = src, dst
		}
		if err := copyBySyscalls(dst, src, v.length); err != nil {
			return fmt.Errorf("at %#x+%d: %w", v.base, v.length, err)
		}
		r.now.Note(v.base, v.length, r.access)
		place += uintptr(v.length)
	}
	return nil
}

// There is Time.There for strided memory. It looks at some places of memory that has many.
func (s *Strided) There(now Time, a Access) bool {
	const most = 16
	runs := s.Bytes() / s.Run
	step := (runs + most - 1) / most
	for index := uint64(0); index < runs; index += step {
		if !now.There(s.find(index).addr, s.Run, a) {
			return false
		}
	}
	return true
}
