package staging

import (
	"sync/atomic"
	"time"

	"kvferry/core/device"
)

// Stats counts the work of one direction of a device's staging so far.
type Stats struct {
	Jobs     uint64 // done
	Failed   uint64 // jobs
	Bytes    uint64 // of the jobs that were done
	Copies   uint64 // between host and device, each queued by itself
	Within   uint64 // copies within the device
	Batches  uint64 // calls that queued many copies at once
	Kernels  uint64 // kernels that made many copies
	Matrices uint64 // calls that queued the rows of a matrix
	Gathered uint64 // moves that were gathered or scattered
	Blocks   int    // made
	Waits    uint64 // how often an account had to wait for a lease
	Leased   uint64 // bytes that are leased or offered

	Copying time.Duration // from the first copy of a job to its end, of all jobs together
}

// Stats returns the counts of a direction.
func (d *Device) Stats(dir Direction) Stats {
	c := d.copiers[dir]
	s := c.counters.stats(dir)
	s.Blocks, s.Waits = c.pool.stats()
	s.Leased = c.pool.leased()
	return s
}

type counters struct {
	jobs, failed, bytes, gathered atomic.Uint64
	copies                        [3]atomic.Uint64               // by device.Kind
	together                      [device.WayCount]atomic.Uint64 // calls, by way
	copying                       atomic.Int64                   // nanoseconds
}

func (c *counters) count(j *Job) {
	if len(j.Moves) == 0 {
		return
	}
	c.jobs.Add(1)
	c.bytes.Add(j.bytes())
}

func (j *Job) bytes() (sum uint64) {
	for i := range j.Moves {
		sum += j.Moves[i].Length
	}
	return sum
}

func (c *counters) stats(dir Direction) Stats {
	return Stats{
		Jobs: c.jobs.Load(), Failed: c.failed.Load(), Bytes: c.bytes.Load(),
		Batches: c.together[device.Batch].Load(), Kernels: c.together[device.Kernel].Load(),
		Copying:  time.Duration(c.copying.Load()),
		Matrices: c.together[device.Matrix].Load(),
		Copies:   c.copies[dir.kind()].Load(), Within: c.copies[device.WithinDevice].Load(), Gathered: c.gathered.Load(),
	}
}
