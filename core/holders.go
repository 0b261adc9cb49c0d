package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"kvferry/core/status"

	"github.com/google/btree"
)

// ErrInUse is in the error of a call that has waited long enough for a transfer to end: the transfer may still use memory.
var ErrInUse = errors.New("still in use")

// hold is a pin of regions with a reason, which errors name.
type hold struct {
	ranges  []Range // what is held of the regions
	regions []*Region
	why     string
	ended   chan struct{} // closed when it is released
}

// Hold pins the registered memory that overlaps r until release is called. Unregister waits for it, as does Offer.Revoke of an offer
// of some of r, and both fail with why in their error when that takes too long. Close names what is held then. Memory that is being
// unregistered is pinned as well while it has other pins. Memory that is not registered is not pinned. release may be called from
// any goroutine, and more than once.
func (m *Registry) Hold(r Range, why string) (release func()) { return m.HoldAll([]Range{r}, why) }

// HoldAll is Hold for several ranges together.
func (m *Registry) HoldAll(ranges []Range, why string) (release func()) {
	h, held := &hold{ranges: ranges, why: why, ended: make(chan struct{})}, map[*Region]bool{}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, tree := range []*btree.BTreeG[entry]{m.index, m.leaving} {
		for _, r := range ranges {
			eachOverlapping(tree, r, func(region *Region) {
				if !held[region] && region.pinIfInUse() {
					held[region] = true
					h.regions = append(h.regions, region)
				}
			})
		}
	}
	if len(h.regions) == 0 {
		return func() {}
	}
	m.holds[h] = struct{}{}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		delete(m.holds, h)
		m.mu.Unlock()
		unpinAll(h.regions)
		close(h.ended)
	})
}

// eachOverlapping calls f for every region that shares a byte with r. The registry's lock is held.
func eachOverlapping(tree *btree.BTreeG[entry], r Range, f func(*Region)) {
	if r.Length == 0 || r.end()-1 < r.Addr {
		return
	}
	tree.DescendLessOrEqual(entry{addr: r.end() - 1}, func(e entry) bool {
		overlaps := e.region.end()-1 >= r.Addr
		if overlaps {
			f(e.region)
		}
		return overlaps // regions do not overlap each other: those below end lower still
	})
}

// whyHeld are the reasons of the holds of a region.
func (m *Registry) whyHeld(r *Region) (why []string) {
	for _, h := range m.holdsThat(func(h *hold) bool { return slices.Contains(h.regions, r) }) {
		why = append(why, h.why)
	}
	return why
}

// holdsThat are the holds that a function selects.
func (m *Registry) holdsThat(selects func(*hold) bool) (holds []*hold) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for h := range m.holds {
		if selects(h) {
			holds = append(holds, h)
		}
	}
	return holds
}

// waitReleased waits until no memory is held of which within says that it matters. When the context ends before that, it returns an
// error with ErrInUse in it, which begins with what.
func (m *Registry) waitReleased(ctx context.Context, what string, within func(Range) bool) error {
	for {
		holds := m.holdsThat(func(h *hold) bool { return slices.ContainsFunc(h.ranges, within) })
		if len(holds) == 0 {
			return nil
		}
		select {
		case <-holds[0].ended:
		case <-ctx.Done():
			return status.Errorf(status.BatchBusy, "%s is %w by %s", what, ErrInUse, enumerate(holds, func(h *hold) string { return h.why }))
		}
	}
}

// stillHeld names all memory that is held, and why: in an error with ErrInUse in it. It is nil where nothing is held.
func (m *Registry) stillHeld() error {
	var all []string
	for _, h := range m.holdsThat(func(*hold) bool { return true }) {
		for _, r := range h.regions {
			all = append(all, fmt.Sprintf("%v by %s", r.Range, h.why))
		}
	}
	if len(all) == 0 {
		return nil
	}
	slices.Sort(all)
	return status.Errorf(status.BatchBusy, "memory is %w: %s", ErrInUse,
		enumerate(slices.Compact(all), func(held string) string { return held }))
}

// user says which task of the batch uses a region; "" when none does. A batch pins the memory of all its tasks until the last of
// them has ended. So this may be a task with other memory.
func (b *Batch) user(r *Region) string {
	tasks := b.outstanding()
	if at := slices.IndexFunc(tasks, func(t *Task) bool { return t.touches(r) }); at >= 0 {
		return b.describe(tasks[at])
	}
	if len(tasks) > 0 && b.firstPinned(map[*Region]bool{r: true}) != nil {
		return b.describe(tasks[0])
	}
	return ""
}

// outstanding are the tasks of the batch that have not ended.
func (b *Batch) outstanding() (tasks []*Task) {
	for _, s := range b.all() {
		for i := range s.tasks {
			if atomic.LoadUint64(&s.tasks[i].outstanding) > 0 {
				tasks = append(tasks, &s.tasks[i])
			}
		}
	}
	return tasks
}

// unfinished names the tasks that have not ended, with their local memory.
func (e *Engine) unfinished() string {
	var users []string
	e.batches.Range(func(_, b any) bool {
		if tasks := b.(*Batch).unfinished(); tasks != "" {
			users = append(users, tasks)
		}
		return true
	})
	return enumerate(users, func(user string) string { return user })
}

// unfinished names the tasks of the batch that have not ended, with their local memory; "" when there are none.
func (b *Batch) unfinished() string {
	return enumerate(b.outstanding(), func(t *Task) string {
		return fmt.Sprintf("%s, local memory %v", b.describe(t), Range{Addr: t.Local, Length: t.Length})
	})
}

// touches reports whether one of the task's ranges is in a region of this process.
func (t *Task) touches(r *Region) bool {
	within := func(addr uint64) bool { return addr < uint64(r.end()) && uint64(r.Addr) < addr+t.Length }
	return within(uint64(t.Local)) || t.Target == LocalSegment && within(t.Remote)
}

func (b *Batch) describe(t *Task) string {
	segment := fmt.Sprintf("segment %d", t.Target)
	if s := b.engine.segments.numbered(t.Target); s != nil {
		segment = fmt.Sprintf("segment %q", s.Name)
	}
	return fmt.Sprintf("a %v of %d bytes, %s, batch %d", t.Opcode, t.Length, segment, b.id)
}

// holders says who uses a region that is being unregistered: transfers of this engine, peers, and holds.
func (e *Engine) holders(r *Region) string {
	who := e.memory.whyHeld(r)
	e.batches.Range(func(_, b any) bool {
		if user := b.(*Batch).user(r); user != "" {
			who = append(who, user)
		}
		return true
	})
	for _, t := range e.installed() {
		who = append(who, t.Holders(r)...)
	}
	if len(who) == 0 {
		return "a transfer that has ended by now"
	}
	slices.Sort(who)
	return enumerate(slices.Compact(who), func(name string) string { return name })
}

// enumerate joins a description of each item, of the first eight at most.
func enumerate[T any](items []T, describe func(T) string) string {
	const most = 8
	var texts []string
	for _, item := range items[:min(len(items), most)] {
		texts = append(texts, describe(item))
	}
	if more := len(items) - most; more > 0 {
		texts = append(texts, fmt.Sprintf("%d more", more))
	}
	return strings.Join(texts, "; ")
}
