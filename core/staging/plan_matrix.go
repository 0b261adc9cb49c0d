package staging

import "kvferry/core/device"

// Which moves are the rows of a matrix. See planner.

// run is moves of one length that follow each other, each as far from the one before it, on the device and in the lease.
type run struct{ first, count int }

// runLeast is how many moves a run has at least. Unless they would be copied one by one, it has at least half of those of a job, too:
// what many short runs save would be lost again, since the other moves are not copied together with them.
const runLeast = 8

// findRuns finds the runs, and gives their moves the way Matrix where that is the fastest.
func (p *planner) findRuns() {
	p.runs = p.runs[:0]
	if !p.ways.able.Has(device.Matrix) || !p.ways.matrices() {
		return
	}
	for first := 0; first+p.least <= len(p.moves); {
		count := p.runFrom(first)
		if count >= p.least && p.isMatrix(p.moves[first:first+count]) {
			p.runs = append(p.runs, run{first, count})
			for i := range count {
				p.moves[first+i].way = device.Matrix
			}
		}
		first += max(1, count-1) // the last move may begin the next run
		if n := len(p.runs); n > 0 {
			first = max(first, p.runs[n-1].first+p.runs[n-1].count)
		}
	}
}

// isMatrix reports whether the moves of a run are copied fastest as the rows of a matrix. CANN's page on aclrtMemcpy2dAsync bounds
// their number, and has no rule for addresses and lengths. So they can be runs of a strided move that cannot be gathered: runs of a
// length that is no multiple of the alignment lie without gaps in the lease, and only few of them begin aligned.
func (p *planner) isMatrix(rows []planned) bool {
	length := rows[0].Length
	gathers := length < p.below && p.areAligned(rows)
	oneByOne := !gathers && p.ways.nearest(device.Batch) == device.Single
	if !oneByOne && len(rows) < len(p.moves)/2 {
		return false
	}
	return p.ways.matrix(length, len(rows), length < p.below, gathers)
}

// areAligned reports whether all moves of a run lie as rule 6 wants it.
func (p *planner) areAligned(rows []planned) bool {
	before := uintptr(0)
	for i := range rows {
		if !p.isAligned(&rows[i], before) {
			return false
		}
		before = rows[i].end()
	}
	return true
}

// runFrom is how many moves from one on are in one run.
func (p *planner) runFrom(first int) int {
	count := 1
	for i := first + 1; i < len(p.moves); i++ {
		if !p.moves[i].follows(&p.moves[i-1]) || i > first+1 && p.pitches(i) != p.pitches(first+1) {
			break
		}
		count++
	}
	return count
}

// follows reports whether a move can be the next row after another one.
func (m *planned) follows(before *planned) bool {
	return m.Length == before.Length && m.Device >= before.Device+uintptr(before.Length) && m.Block >= before.end()
}

// pitches are the distances of a move from the one before it, on the device and in the lease.
func (p *planner) pitches(i int) [2]uintptr {
	return [2]uintptr{p.moves[i].Device - p.moves[i-1].Device, p.moves[i].Block - p.moves[i-1].Block}
}

// planMatrices plans a step for each run.
func (p *planner) planMatrices() {
	for _, r := range p.runs {
		first, pitches := p.direct(&p.moves[r.first]), p.pitches(r.first+1)
		onDevice, inLease := uint64(pitches[0]), uint64(pitches[1])
		rows := device.Rows{Dst: first.Dst, Src: first.Src, DstPitch: inLease, SrcPitch: onDevice, Length: first.Length, Count: uint64(r.count)}
		if p.dir == In {
			rows.DstPitch, rows.SrcPitch = onDevice, inLease
		}
		for i := range r.count {
			p.moves[r.first+i].group = together
		}
		p.steps = append(p.steps, step{kind: p.dir.kind(), way: device.Matrix, rows: rows})
	}
}
