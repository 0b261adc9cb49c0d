package core

import (
	"math/bits"

	"kvferry/core/staging"
	"kvferry/core/status"
)

// How the tasks of a submission become works:
//
//  1. eachTask checks each task, and pins the registered regions that its local memory shares bytes with. The regions say which
//     device the memory is on, and so the task's route.
//  2. work finds or makes the work of that route, and the task is linked into it.
//  3. run does the same for many equal tasks at once, if one region holds all of their local memory.

// route is what the tasks of a work have in common.
type route struct {
	target SegmentID
	device *staging.Device // the device that their local memory is on; nil for host memory
	opcode Opcode          // only with a device: its tasks are queued by direction
}

// distribution links the tasks of a submission into works, each task once. They are in the order of their indices, but for
// pages (linkByColumns).
type distribution struct {
	*submission
	engine        *Engine
	haveTransport bool
	last          *Work
	lastRoute     route
	byRoute       map[route]*Work // nil while there is only one
}

// eachTask checks count tasks from first on, pins their local regions, and links each into the work of its route. Empty tasks
// and impossible ones are in no work.
func (d *distribution) eachTask(first, count int) error {
	for i := first; i < first+count; i++ {
		task := &d.tasks[i]
		if task.Opcode != Read && task.Opcode != Write {
			return status.Errorf(status.InvalidArgument, "request %d has opcode %d", i, task.Opcode)
		}
		task.Next, task.outstanding = -1, task.Length
		d.bytes += task.Length
		way := route{target: task.Target}
		var mixed error
		way.device, mixed = d.engine.memory.pinOverlapping(Range{Addr: task.Local, Length: task.Length}, &d.pins)
		if way.device != nil {
			way.opcode = task.Opcode
		}
		w, err := d.work(way)
		if err != nil {
			return err
		}
		switch {
		case task.Length == 0:
			d.empty = true
		case task.wraps() || w.Bytes+task.Length < w.Bytes:
			d.refused = append(d.refused, refusal{int32(i), errWraps})
		case mixed != nil:
			d.refused = append(d.refused, refusal{int32(i), mixed})
		default:
			w.append(int32(i))
		}
	}
	return nil
}

// run is eachTask for tasks with one opcode, target and length, none of which is empty or wraps around, and which are already
// linked by Next. within is all of their local memory. If one region holds it, all of them are appended to a work at once.
func (d *distribution) run(first, count int, within Range) error {
	task := &d.tasks[first]
	over, bytes := bits.Mul64(uint64(count), task.Length)
	region := d.engine.memory.pinHolder(within, &d.pins)
	if region == nil || over != 0 || task.Opcode != Read && task.Opcode != Write {
		return d.eachTask(first, count)
	}
	way := route{target: task.Target, device: region.Device}
	if way.device != nil {
		way.opcode = task.Opcode
	}
	w, err := d.work(way)
	if err != nil {
		return err
	}
	if w.Bytes+bytes < w.Bytes {
		return d.eachTask(first, count)
	}
	d.bytes += bytes
	w.appendRun(int32(first), int32(first+count-1), bytes)
	return nil
}

// work finds or makes the work of a route.
func (d *distribution) work(way route) (*Work, error) {
	if d.last != nil && d.lastRoute == way {
		return d.last, nil
	}
	if d.last != nil && d.byRoute == nil {
		d.byRoute = map[route]*Work{d.lastRoute: d.last}
	}
	w := d.byRoute[way]
	if w == nil {
		segment, err := d.engine.target(way.target, d.haveTransport)
		if err != nil {
			return nil, err
		}
		w = d.newWork(segment, way.device)
		if d.byRoute != nil {
			d.byRoute[way] = w
		}
	}
	d.last, d.lastRoute = w, way
	return w, nil
}

// only is the work that all tasks are in; nil where there is none.
func (d *distribution) only() *Work {
	if len(d.works) != 1 || d.empty || len(d.refused) > 0 {
		return nil
	}
	return d.works[0]
}
