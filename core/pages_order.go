package core

// Pages whose numbers have no order, of rows that are at regular places, are to go column by column: a transport finds a page of
// all rows at regular places then, and not the pages of a row. With kvferry's, those are one request.
//
//  1. goByColumns looks at the rows and at the numbers. It takes one pass over them.
//  2. linkByColumns links the tasks again, when all of them are in one work. Consecutive pages of a row stay together. The
//     tasks have the same indices as before.

// What a transport joins into one request, where it can: runs of bytes at regular places.
const (
	// MostRegularRun bounds these runs, in bytes: beyond, their own requests are faster.
	MostRegularRun = 512
	// FewestRegularRuns is how many are worth such a request. Its header has the size of three others.
	FewestRegularRuns = 8
)

// goByColumns reports whether the requests are to go column by column.
func (p *Pages) goByColumns() bool {
	const long = 16 // consecutive pages, which are worth a request in their row
	return len(p.Rows) >= FewestRegularRuns && p.hasRegularRows() && p.groups() > len(p.Local)/long
}

// hasRegularRows reports whether most rows are small pages at the distance from each other that the ones before have.
func (p *Pages) hasRegularRows() bool {
	changes := 0
	for i := 1; i < len(p.Rows); i++ {
		before, row := &p.Rows[i-1], &p.Rows[i]
		if row.Length > MostRegularRun || row.Length != before.Length ||
			row.LocalStride != before.LocalStride || row.RemoteStride != before.RemoteStride {
			return false
		}
		if i > 1 && row.distance(before) != before.distance(&p.Rows[i-2]) {
			changes++
		}
	}
	return changes <= 2*len(p.Rows)/FewestRegularRuns
}

// distance is how far a row is behind another, on each side.
func (r *PageRow) distance(other *PageRow) [2]uint64 {
	return [2]uint64{r.LocalBase - other.LocalBase, r.RemoteBase - other.RemoteBase}
}

// groups is how many groups of consecutive pages there are: each page has the number of the one before it plus 1, on both sides.
func (p *Pages) groups() int {
	groups := 0
	for first := 0; first < len(p.Local); first += p.group(first) {
		groups++
	}
	return groups
}

// group is how many consecutive pages begin with a page.
func (p *Pages) group(first int) int {
	last := first
	for last+1 < len(p.Local) && p.Local[last+1] == p.Local[last]+1 && p.Remote[last+1] == p.Remote[last]+1 {
		last++
	}
	return last - first + 1
}

// linkByColumns links the tasks of a work, which are all requests row by row, in the order of columns.
func (p *Pages) linkByColumns(w *Work) {
	pages := len(p.Local)
	before := int32(-1)
	for first := 0; first < pages; {
		count := p.group(first)
		for row := range p.Rows {
			for i := range count {
				task := int32(row*pages + first + i)
				if before < 0 {
					w.Head = task
				} else {
					w.Tasks[before].Next = task
				}
				before = task
			}
		}
		first += count
	}
	w.Tasks[before].Next, w.tail = -1, before
}
