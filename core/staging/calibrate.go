package staging

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"time"

	"kvferry/core/device"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// How long each way of copying takes is measured once in a process, for each device and direction:
//
//  1. The preparation of the device, or else the first job with several moves, finds that there is no table yet. One of all copiers
//     of the process takes the task, and starts a thread for it; jobs are copied in the device's default way meanwhile.
//  2. The thread has a stream, events, a page-locked block and device memory of its own. For each length of block and each way
//     it plans a job as the copier would, queues it between two events, and asks the device for the time between them.
//  3. Of several times it keeps the shortest: other work on the device only makes a time longer.
//  4. It keeps the table, which later jobs of every engine use, and closes its stream. Its memory is freed when the copier is
//     closed: CUDA's calls that free memory wait for all streams of the application, and copies wait for these calls.
//  5. It ends early when the copier is closed, or its time is over. If something fails, the default stays, and that is logged once.

const (
	calibrationSpan  = 2 << 20         // bytes of the page-locked block, and of the gather block
	calibrationGap   = 64              // bytes between blocks on the device, so that they are not joined
	calibrationMost  = 64              // blocks
	calibrationTimes = 3               // how often each is measured
	calibrationTime  = time.Second / 4 // for a table: the lengths that it does not come to keep the default way
	calibrationWait  = time.Second     // for the copies of one measurement
)

// calibration is one measurement. Its own thread uses it.
type calibration struct {
	*copier
	dir      Direction
	timer    device.Timer
	stream   device.Stream
	from, to device.Event
	block    uintptr // page-locked
	memory   uintptr // of the device: the gather block, and behind it the blocks
	planners [device.WayCount]planner
	able     device.Ways
	below    uint64 // of the copier's planner
	moves    []Move
}

// calibrate has the table of the device used, or measured. It is called by the thread that issues a job.
func (c *copier) calibrate() {
	if c.tables == nil || c.planner.ways.table != nil {
		return
	}
	kind := c.planner.dir.kind()
	if table := c.tables.Of(kind); table != nil {
		c.planner.ways.table = table
		return
	}
	if !c.tables.Take(kind) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		c.tables.Return(kind)
		return
	}
	c.calibrating = true
	go c.measureOnThread(&calibration{copier: c, dir: c.planner.dir, timer: c.device.(device.Timer), able: c.device.Traits().Ways, below: c.planner.below})
}

// errStopped is why a measurement has ended that another copier may make.
var errStopped = errors.New("the copier is being closed")

// measureOnThread runs on an OS thread of its own, which ends with it.
func (c *copier) measureOnThread(m *calibration) {
	runtime.LockOSThread()
	if err := m.device.Bind(); err != nil {
		m.settle(err)
	} else {
		m.settle(status.Guard(m.measure))
		m.free()
		m.failedTo("unbind the thread that measured", m.device.Unbind())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calibrating = false
	c.endIfIdle()
}

// settle says what becomes of the task of measuring.
func (m *calibration) settle(err error) {
	switch {
	case errors.Is(err, errStopped):
		m.tables.Return(m.dir.kind())
	case err != nil:
		m.tables.Keep(m.dir.kind(), nil)
		m.log.Warn("it could not be measured how blocks are copied fastest: they are copied as on most such devices",
			zap.String("device", m.name), zap.Error(err))
	}
}

// measure makes the table, and keeps it.
func (m *calibration) measure() error {
	if err := m.allocate(); err != nil {
		return err
	}
	if err := m.warmUp(); err != nil {
		return err
	}
	table, over := new(device.Table), time.Now().Add(cmp.Or(m.measureTime, calibrationTime))
	for i := range table.Rows {
		row, err := m.row(device.Lengths[i])
		if err != nil {
			return err
		}
		if time.Now().After(over) {
			break
		}
		table.Rows[i] = row
	}
	m.tables.Keep(m.dir.kind(), table)
	m.log.Info("it was measured how blocks are copied fastest", zap.String("device", m.name),
		zap.String("ways", m.summary(table)))
	return nil
}

// summary is the way of many blocks of each length, which may not be at one distance from each other.
func (m *calibration) summary(table *device.Table) string {
	w := newWays(m.dir, m.device.Traits(), Options{})
	w.able, w.table = m.able, table
	var parts []string
	for i, length := range device.Lengths {
		w.choose(i, max(2, table.Rows[i].Many))
		parts = append(parts, fmt.Sprintf("%d KiB %v", length>>10, w.of(length, length < m.below)))
	}
	return strings.Join(parts, ", ")
}

func (m *calibration) allocate() (err error) {
	const memory = 2*calibrationSpan + calibrationMost*calibrationGap
	if m.stream, err = m.device.NewStream(); err != nil {
		return err
	}
	if m.from, err = m.timer.NewTimedEvent(); err != nil {
		return err
	}
	if m.to, err = m.timer.NewTimedEvent(); err != nil {
		return err
	}
	if m.block, err = m.device.AllocatePinned(calibrationSpan); err != nil {
		return err
	}
	if m.memory, err = m.device.Allocate(memory); err != nil {
		return err
	}
	for way := range device.WayCount {
		m.planners[way] = newPlanner(m.dir, m.device.Traits(), Options{
			GatherBelow: math.MaxUint64, BlockSize: calibrationSpan, Copying: AlwaysBy(way),
		})
		m.planners[way].gather, m.planners[way].least = m.memory, 2
	}
	return nil
}

// warmUp uses each way once: a library may load or compile what it needs then.
func (m *calibration) warmUp() error {
	for way := range device.WayCount {
		if !m.able.Has(way) {
			continue
		}
		if _, _, err := m.time(way, device.Lengths[0], calibrationMost); err != nil {
			if err := m.lost(way, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// row measures each way for blocks of one length.
func (m *calibration) row(length uint64) (row device.Row, err error) {
	row.Many = int(min(calibrationMost, calibrationSpan/length))
	row.Few = min(2, row.Many-1)
	for range calibrationTimes {
		for way := range device.WayCount {
			if !m.able.Has(way) {
				continue
			}
			if err := m.times(&row, way, length); err != nil {
				return row, err
			}
		}
	}
	row.Measured &= m.able
	return row, nil
}

// times measures one way once.
func (m *calibration) times(row *device.Row, way device.Way, length uint64) error {
	few, _, err := m.time(way, length, row.Few)
	if err != nil {
		return m.lost(way, err)
	}
	many, used, err := m.time(way, length, row.Many)
	if err != nil {
		return m.lost(way, err)
	}
	times := &row.Times[way]
	switch {
	case !used: // the device cannot copy such blocks in this way
	case row.Measured.Has(way):
		times.Few, times.Many = min(times.Few, few), min(times.Many, many)
	default:
		times.Few, times.Many = few, many
		row.Measured |= device.WaysOf(way)
	}
	return nil
}

// lost is nil if the error says that the device lacks the way, which is not measured again.
func (m *calibration) lost(way device.Way, err error) error {
	if m.planners[way].ways.lose(err) {
		m.able = m.able.Without(way)
		return nil
	}
	return err
}

// time measures a job. used is whether its moves go the given way.
func (m *calibration) time(way device.Way, length uint64, blocks int) (takes time.Duration, used bool, err error) {
	select {
	case <-m.stopping:
		return 0, false, errStopped
	default:
	}
	p := &m.planners[way]
	steps := p.plan(m.lay(length, blocks))
	used = p.gathered == blocks
	if way != device.Gather {
		used = steps[0].way == way
	}
	if err := m.queue(steps); err != nil {
		return 0, false, err
	}
	limit := min(m.timeout, calibrationWait)
	done, err := m.to.Wait(limit)
	if err == nil && !done {
		err = fmt.Errorf("%d blocks of %d bytes were not copied within %v", blocks, length, limit)
	}
	if err != nil {
		return 0, false, err
	}
	takes, err = m.timer.Elapsed(m.from, m.to)
	return takes, used, err
}

// lay places blocks in the block, one behind the other, and on the device with gaps.
func (m *calibration) lay(length uint64, blocks int) []Move {
	m.moves = m.moves[:0]
	for i := range uintptr(blocks) {
		m.moves = append(m.moves, Move{
			Device: m.memory + calibrationSpan + i*uintptr(length+calibrationGap), Block: m.block + i*uintptr(length), Length: length,
		})
	}
	return m.moves
}

// queue puts a job between the events.
func (m *calibration) queue(steps []step) error {
	if err := m.stream.Record(m.from); err != nil {
		return err
	}
	for i := range steps {
		if _, err := steps[i].queue(m.stream); err != nil {
			return err
		}
	}
	return m.stream.Record(m.to)
}

// free releases everything but the memory, which the copier frees. If the stream does not come to rest, that waits until the
// copier is closed, and what is still stuck then is left as it is.
func (m *calibration) free() {
	if m.stream != nil {
		stuck, _ := drain(m.stream, min(m.timeout, calibrationWait))
		if stuck {
			<-m.stopping
			var err error
			if stuck, err = drain(m.stream, m.timeout/8); stuck {
				m.failedTo("bring the stream of a measurement to rest: the stream and its memory are left as they are", err)
				return
			}
		}
		m.failedTo("close the stream of a measurement", m.stream.Close())
	}
	for _, e := range []device.Event{m.from, m.to} {
		if e != nil {
			m.failedTo("close an event", e.Close())
		}
	}
	m.leave(m.block, m.memory)
}

// leave leaves memory to the copier until that is closed. If it is being closed, the memory is freed at once.
func (m *calibration) leave(block, memory uintptr) {
	m.mu.Lock()
	late := m.closing
	if !late {
		m.leftover = leftover{block, memory}
	}
	m.mu.Unlock()
	if late {
		m.awaitCalls()
		m.freeLeftover(leftover{block, memory})
	}
}

// leftover is memory of a measurement that has ended: page-locked memory, and memory of the device; 0 for none.
type leftover struct{ block, memory uintptr }

// takeLeftover returns the memory, which is the caller's to free.
func (c *copier) takeLeftover() leftover {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := c.leftover
	c.leftover = leftover{}
	return left
}

func (c *copier) freeLeftover(left leftover) {
	if left.block != 0 {
		c.failedTo("free the block of a measurement", c.device.FreePinned(left.block))
	}
	if left.memory != 0 {
		c.failedTo("free the device memory of a measurement", c.device.Free(left.memory))
	}
}
