package core

import (
	"time"

	"kvferry/core/staging"
	"kvferry/core/trace"
)

// Small tasks from device to device are copied together, so that a kernel can copy many of them:
//
//  1. addDirect takes a task if it goes from device to device, with the pin of its region and the use of its offer.
//  2. copyDirect copies the tasks in one job, when they are many, and before a task that is copied otherwise. So tasks that
//     overlap are copied in their order: the planner of core/staging sees to that within a job.
//  3. If the device refuses a copy of the job, each task that has not landed is copied by itself, through the host if it must be. So
//     a task with bad memory fails alone. If one fails otherwise, as when the device does not finish the copy in time, so do those
//     behind it: each of them might take as long.
//  4. endDirect ends the pins, and settles the tasks.

// directTasks are those that the next job copies.
type directTasks struct {
	tasks []directTask
	moves []staging.Move // those of the tasks
	bytes uint64
	dst   *staging.Device
	src   *staging.Device
}

// directTask is a task and what it holds until its end.
type directTask struct {
	index  int32
	remote *Region
	offer  *Offer // nil where the work has no key
}

// addDirect takes over the pinned task if its bytes go from device to device, and it is no longer than a step.
func (c *localWork) addDirect(i int32) bool {
	r, d := &c.Tasks[i].Request, &c.direct
	dst, src := c.places(r, c.pinned)
	if r.Length > directStep || !isDirect(dst, src, r.Length) {
		return false
	}
	if d.bytes+r.Length > directStep || uint64(len(d.tasks)) >= dst.on.MostDirect(src.on) {
		c.copyDirect()
	}
	d.dst, d.src = dst.on, src.on
	d.tasks = append(d.tasks, directTask{i, c.pinned, c.offer})
	d.moves = append(d.moves, staging.Move{Device: dst.addr, Block: src.addr, Length: r.Length})
	d.bytes += r.Length
	c.pinned, c.offer = nil, nil
	return true
}

// copyDirect copies the tasks that addDirect has taken.
func (c *localWork) copyDirect() {
	d := c.direct
	c.direct = directTasks{}
	if len(d.tasks) == 0 {
		return
	}
	began := c.trace.Now()
	err := c.Aborted()
	if err == nil {
		err = copyDirectly(d.dst, d.src, d.moves)
	}
	landed, refused := staging.Landed(err)
	again := refused && (len(d.tasks) > 1 || staging.IsRefused(err))
	for i, task := range d.tasks {
		own := err
		if again {
			own = nil
			if i >= landed {
				own = c.copyAlone(&task)
				if _, refused := staging.Landed(own); own != nil && !refused {
					err, again = own, false
				}
			}
		}
		c.endDirect(&task, own, began)
	}
}

// copyAlone copies a task that was refused in a job.
func (c *localWork) copyAlone(task *directTask) error {
	r := &c.Tasks[task.index].Request
	dst, src := c.places(r, task.remote)
	return c.copyInSteps(dst, src, r.Length)
}

// endDirect ends a task that was copied in a job, or by itself.
func (c *localWork) endDirect(task *directTask, err error, began time.Duration) {
	r := &c.Tasks[task.index].Request
	if task.offer != nil {
		task.offer.End()
	}
	task.remote.Unpin()
	c.trace.Copied(trace.Local, "", r.Length, began)
	c.settleOne(task.index, err)
}
