package client

import (
	"slices"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/core/metadata"
	"kvferry/tcp/wire"
)

// Tasks that repeat at regular places on both sides, such as small pages of a pool or the same page of each layer, go as one
// strided request instead of one for each:
//
//  1. cut has made a piece of the first of them, or of several that are adjacent: a run.
//  2. repeat follows the tasks behind it as long as they are runs of that length at the distances that the ones before have.
//     What repeats is first a run, then the runs found so far together, and so on: each time there is one more axis.
//  3. The piece is one of several tasks, as adjacent ones are. Where it fails or is refused, each task is tried by itself (split).
//
// Each task is looked at a few times at most, whatever the tasks are: what is compared in vain for an axis is no longer than the
// piece so far.

// mostRegularRuns bounds the runs of a piece: a target takes no request for more regions.
const mostRegularRuns = 1024

// regular is what repeats.
type regular struct {
	*piece
	tasks  []core.Task
	axes   [wire.MaxAxes]layout.Axis // the innermost first; the sources are local memory
	count  int
	shown  *metadata.Descriptor
	asked  bool            // the descriptor has to show and allow each run
	buffer metadata.Buffer // of the last run that the descriptor was asked for
}

// repeat extends a piece, which is a run of whole tasks, over the tasks that follow it at regular places. asked says that the
// descriptor has to show each run.
func (c *cursor) repeat(p *piece, to destination, limit uint64, d *metadata.Descriptor, asked bool) {
	if p.length > min(to.runs, core.MostRegularRun) || c.short() || c.work.Key != (layout.Key{}) || !c.mayRepeat(p) {
		return
	}
	r := regular{piece: p, tasks: c.work.Tasks, shown: d, asked: asked}
	if asked && !r.allows(p.remote) {
		return
	}
	runs, next := r.find(c.task, min(limit, stridedBytes, mostRegularRuns*p.length)/p.length)
	if runs < core.FewestRegularRuns {
		return
	}
	c.left -= (runs - 1) * p.length
	c.task = next
	local := hostmem.Strided{Base: p.local, Run: p.length, Count: r.count}
	remote := hostmem.Strided{Base: uintptr(p.remote), Run: p.length, Count: r.count}
	for i, a := range slices.Backward(r.axes[:r.count]) {
		at := r.count - 1 - i
		local.Axes[at] = hostmem.Axis{Count: a.Count, Stride: a.Source}
		remote.Axes[at] = hostmem.Axis{Count: a.Count, Stride: a.Destination}
	}
	p.length *= runs
	p.merged, p.strided = true, newStrided(c.work, local, remote)
}

// mayRepeat reports whether the next tasks may be at regular places. It spares others most of the effort.
func (c *cursor) mayRepeat(p *piece) bool {
	if p.merged {
		return c.task >= 0
	}
	local, remote, next := uint64(p.local), p.remote, c.task
	var steps [3][2]uint64
	for i := range steps {
		if next < 0 {
			return false
		}
		task := &c.work.Tasks[next]
		if task.Length != p.length {
			return false
		}
		steps[i] = [2]uint64{uint64(task.Local) - local, task.Remote - remote}
		local, remote, next = uint64(task.Local), task.Remote, task.Next
	}
	return steps[1] == steps[0] || steps[2] == steps[0]
}

// find finds axes, with at most so many runs together. next is the first task, and then the one behind the last run.
func (r *regular) find(next int32, most uint64) (runs uint64, behind int32) {
	runs = 1
	for r.count < wire.MaxAxes && 2*runs <= most {
		local, remote, _, ok := r.run(next)
		if !ok {
			break
		}
		axis := layout.Axis{Count: 1, Source: int64(local - uint64(r.local)), Destination: int64(remote - r.remote)}
		for (axis.Count+1)*runs <= most {
			local, remote := uint64(r.local)+axis.Count*uint64(axis.Source), r.remote+axis.Count*uint64(axis.Destination)
			behind, ok := r.again(r.count, next, local, remote)
			if !ok {
				break
			}
			next = behind
			axis.Count++
		}
		if axis.Count == 1 {
			break
		}
		r.axes[r.count] = axis
		r.count++
		runs *= axis.Count
	}
	return runs, next
}

// again reports whether the runs of the innermost axes, so many, come again: from a task and from an address on each side on.
func (r *regular) again(axes int, next int32, local, remote uint64) (behind int32, ok bool) {
	if axes == 0 {
		foundLocal, foundRemote, behind, ok := r.run(next)
		return behind, ok && foundLocal == local && foundRemote == remote
	}
	axis := &r.axes[axes-1]
	for range axis.Count {
		if next, ok = r.again(axes-1, next, local, remote); !ok {
			return 0, false
		}
		local += uint64(axis.Source)
		remote += uint64(axis.Destination)
	}
	return next, true
}

// run is where the run lies that begins with a task, and the task behind it. It returns false where there is none of that length,
// or the descriptor does not allow it.
func (r *regular) run(first int32) (local, remote uint64, behind int32, ok bool) {
	if first < 0 {
		return 0, 0, 0, false
	}
	task := &r.tasks[first]
	local, remote = uint64(task.Local), task.Remote
	length := uint64(0)
	for next := first; length < r.length; next = behind {
		if next < 0 {
			return 0, 0, 0, false
		}
		task = &r.tasks[next]
		if task.Opcode != r.op || uint64(task.Local) != local+length || task.Remote != remote+length || task.Length > r.length-length {
			return 0, 0, 0, false
		}
		length += task.Length
		behind = task.Next
	}
	several := r.tasks[first].Length < r.length
	return local, remote, behind, !r.asked && !several || r.allows(remote)
}

// allows reports whether a run lies within one buffer of the peer. Where the descriptor is asked, it has to allow the run, and the
// runs have to be in one kind of memory.
func (r *regular) allows(remote uint64) bool {
	if b := &r.buffer; remote >= b.Addr && r.length <= b.Length && remote-b.Addr <= b.Length-r.length {
		return true
	}
	buffer, ok := r.shown.Contains(remote, r.length)
	if ok && r.asked {
		other := r.buffer.Length > 0 && buffer.Name != r.buffer.Name
		ok = !other && refusalBy(r.shown, &piece{op: r.op, remote: remote, length: r.length}) == nil
	}
	if ok {
		r.buffer = buffer
	}
	return ok
}

// isRegular reports whether the piece is several tasks at regular places.
func (p *piece) isRegular() bool { return p.merged && p.strided != nil }
