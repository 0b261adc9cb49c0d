package main

// #include "internal.h"
import "C"

import (
	"encoding/binary"
	"sync"
	"unsafe"

	"kvferry/core"
	"kvferry/core/status"

	"golang.org/x/sys/unix"
)

// Batches announce their end:
//
//  1. kvferry_start with announce reserves room before anything moves, and has OnDone call add when the batch has ended.
//  2. add appends its id to the queue, and sets the counter of the eventfd if the queue was empty.
//  3. kvferry_completions_next takes ids. It clears the counter when the queue is empty: so the descriptor is readable as long as
//     there is something to take. When the engine has ended, it is readable for ever.
//
// Callers have duplicates of the descriptor, which they close. So none of them can hold one that the engine has closed.

// mostAnnounced is how many batches may have asked for an announcement and not been taken: KVFERRY_COMPLETIONS_MAX.
const mostAnnounced = C.KVFERRY_COMPLETIONS_MAX

// messageArrived stands for messages in the queue.
const messageArrived = uint64(C.INVALID_BATCH)

// completions are the announcements of one engine. Its zero value has no descriptor.
type completions struct {
	mu        sync.Mutex
	queue     []uint64 // ids of batches that have ended, oldest first
	announced int      // batches that will be in the queue, or are
	messages  bool     // messageArrived is in the queue
	listening bool     // messages are announced
	ended     bool     // the engine has ended
	event     int      // the eventfd; 0 before it is needed
	set       bool     // its counter is not 0
}

// reserve makes room for an announcement. The caller uses it by announce, or gives it back by release.
func (c *completions) reserve() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.announced >= mostAnnounced {
		return status.Errorf(status.TooManyRequests, "%d batches have been announced, or will be, and were not taken by kvferry_completions_next",
			int(mostAnnounced))
	}
	c.announced++
	return nil
}

func (c *completions) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.announced--
}

// announce has the end of a batch announced, in room that was reserved.
func (c *completions) announce(b *core.Batch) {
	b.OnDone(func() { c.add(b.ID()) })
}

// add puts a batch that has ended, or messageArrived, into the queue. It does not block.
func (c *completions) add(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == messageArrived {
		if c.messages {
			return
		}
		c.messages = true
	}
	c.queue = append(c.queue, id)
	c.signal()
}

// signal makes the descriptor readable, if there is one. mu is held.
func (c *completions) signal() {
	if c.event == 0 || c.set {
		return
	}
	one := binary.NativeEndian.AppendUint64(nil, 1)
	_, err := unix.Write(c.event, one)
	c.set = err == nil
}

// clear makes the descriptor wait for the next announcement. mu is held.
func (c *completions) clear() {
	if c.set && !c.ended {
		var counter [8]byte
		_, err := unix.Read(c.event, counter[:])
		c.set = err != nil
	}
}

// take moves ids from the queue into out, and returns how many.
func (c *completions) take(out []uint64) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := copy(out, c.queue)
	for _, id := range c.queue[:n] {
		if id == messageArrived {
			c.messages = false
		} else {
			c.announced--
		}
	}
	c.queue = c.queue[n:]
	if len(c.queue) == 0 {
		c.queue = nil
		c.clear()
	}
	return n
}

// descriptor makes a duplicate of the eventfd, which is the caller's. From the first call on, messages are announced.
func (c *completions) descriptor(e *core.Engine) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.event == 0 {
		event, err := newEvent()
		if err != nil {
			return -1, status.Errorf(status.Context, "no descriptor for the completions of %s can be made: %w", e.Name(), err)
		}
		c.event, c.set = event, false
		if len(c.queue) > 0 || c.ended {
			c.signal()
		}
	}
	if c.ended { // a call that began before: nobody closes it after the caller
		event := c.event
		c.event = 0
		return event, nil
	}
	duplicate, err := unix.FcntlInt(uintptr(c.event), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, status.Errorf(status.Context, "the descriptor for the completions of %s cannot be duplicated: %w", e.Name(), err)
	}
	return duplicate, nil
}

// newEvent makes an eventfd. It never has the number of a standard stream, which the application may have closed: others would
// write to it, and 0 stands for none.
func newEvent() (int, error) {
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil || event > unix.Stderr {
		return event, err
	}
	defer func() { _ = unix.Close(event) }()
	return unix.FcntlInt(uintptr(event), unix.F_DUPFD_CLOEXEC, unix.Stderr+1)
}

// listen has messages announced, from the first call on, and those that wait.
func (c *completions) listen(e *core.Engine) {
	c.mu.Lock()
	first := !c.listening
	c.listening = true
	c.mu.Unlock()
	if first {
		e.OnMessage(func() { c.add(messageArrived) })
		c.add(messageArrived)
	}
}

// end makes the descriptor readable for ever.
func (c *completions) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.event != 0 {
		c.signal()
		_ = unix.Close(c.event) // callers have duplicates
		c.event = 0
	}
}

//export kvferry_go_completions_fd
func kvferry_go_completions_fd(engine unsafe.Pointer, reason *C.char) (fd C.int) {
	code := negated(reason, func() error {
		h, e, err := liveHandleOf(engine)
		if err != nil {
			return err
		}
		duplicate, err := h.completions.descriptor(e)
		if err != nil {
			return err
		}
		h.completions.listen(e)
		fd = C.int(duplicate)
		return nil
	})
	return orCode(code, fd)
}

// kvferry_go_completions_next also works while the engine ends, and does not wait for that.
//
//export kvferry_go_completions_next
func kvferry_go_completions_next(engine unsafe.Pointer, out *C.uint64_t, capacity C.size_t, reason *C.char) (taken C.int64_t) {
	code := negated(reason, func() error {
		h, err := handleOf(engine)
		if err != nil {
			return err
		}
		room, err := entries("the list of batch ids", (*uint64)(unsafe.Pointer(out)), capacity)
		if err == nil {
			taken = C.int64_t(h.completions.take(room))
		}
		return err
	})
	return orCode(code, taken)
}
