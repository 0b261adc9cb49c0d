package core

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/btree"
)

// ErrInUse is in the error of a call that could not wait any longer for what uses memory: it may be used still.
var ErrInUse = errors.New("still in use")

// hold is a pin of regions for a reason that errors name.
type hold struct {
	regions []*Region
	why     string
}

// Hold keeps the registered memory that overlaps r from being taken back until release is called: to unregister it waits,
// and fails with why in its error when that takes too long. Memory that is being unregistered is kept as well if
// something else has yet to let go of it; memory that is not registered is not kept. release may be called from any
// goroutine, and more than once.
func (m *Registry) Hold(r Range, why string) (release func()) {
	h := &hold{why: why}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, tree := range []*btree.BTreeG[entry]{m.index, m.leaving} {
		eachOverlapping(tree, r, func(region *Region) {
			if region.pinIfInUse() {
				h.regions = append(h.regions, region)
			}
		})
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
	m.mu.RLock()
	defer m.mu.RUnlock()
	for h := range m.holds {
		if slices.Contains(h.regions, r) {
			why = append(why, h.why)
		}
	}
	return why
}

// user says which task of the batch uses a region; "" when none does. The batch keeps all its memory until all of it has
// ended, so this may be a task with other memory.
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

// holders says who uses a region that was taken: transfers of this engine, peers, and whatever holds it by Registry.Hold.
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

// enumerate joins what tell says of each item, and leaves out what is too much for an error.
func enumerate[T any](items []T, tell func(T) string) string {
	const most = 8
	var told []string
	for _, item := range items[:min(len(items), most)] {
		told = append(told, tell(item))
	}
	if more := len(items) - most; more > 0 {
		told = append(told, fmt.Sprintf("%d more", more))
	}
	return strings.Join(told, "; ")
}
