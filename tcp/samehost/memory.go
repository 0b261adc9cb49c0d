package samehost

import "kvferry/tcp/wire"

// MaxGrants bounds the regions that are known of a process. With more of them all are forgotten.
const MaxGrants = 1024

// Memory is what an initiator knows of the memory of a process of this host: the regions that it may copy from, and
// which of their pages were probably in memory when they were last copied. The zero value is memory out of reach. It is not
// for use by several goroutines at once.
type Memory struct {
	Process *Process // nil: it is on another host, or cannot be seen
	lost    bool
	grants  []wire.Grant // all of one epoch
	seen    seen
}

// Reachable reports whether copies from the process may be tried.
func (m *Memory) Reachable() bool { return m.Process != nil && !m.lost }

// Granted reports whether a range lies in a region that may be copied from.
func (m *Memory) Granted(addr, length uint64) bool {
	for i := range m.grants {
		if m.grants[i].Holds(addr, length) {
			return true
		}
	}
	return false
}

// Proof proves copies from granted regions. known says that there are such regions.
func (m *Memory) Proof() (by Proof, known bool) {
	if len(m.grants) == 0 {
		return Proof{}, false
	}
	return proofOf(&m.grants[0]), true
}

// Learn takes a grant. Grants of another epoch are forgotten.
func (m *Memory) Learn(g wire.Grant) {
	if len(m.grants) == MaxGrants || len(m.grants) > 0 && m.grants[0].Epoch != g.Epoch {
		m.grants = nil
	}
	m.grants = append(m.grants, g)
}

// Forget drops all grants.
func (m *Memory) Forget() { m.grants = nil }

// Lose drops all grants, and has nothing copied from the process any more: the system does not allow it, or the memory is of
// a kind that only its owner can read.
func (m *Memory) Lose() {
	m.Forget()
	m.lost = true
}

// CopiedBefore reports whether a range was copied without a wait, so that its pages are probably in memory.
func (m *Memory) CopiedBefore(addr, length uint64) bool { return m.seen.has(addr, length) }

// NoteCopied records that a range was copied.
func (m *Memory) NoteCopied(addr, length uint64) { m.seen.add(addr, length) }
