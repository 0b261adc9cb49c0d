package main

// #include "internal.h"
import "C"

import (
	"sync"
	"unsafe"

	"kvferry/core"
	"kvferry/core/status"
)

// A call that may wait for a peer or a store, and that its caller may abandon:
//
//  1. kvferry_start_* starts it on a goroutine, and returns a handle.
//  2. kvferry_call_wait waits in C for a word on the caller's stack, which is set when the call has ended. The caller may do so
//     several times.
//  3. The caller gets the result, or abandons the call. An abandoned call goes on until it ends by itself, and an engine that it
//     has made is destroyed.

// pendingCall is a call that is under way, or has ended.
type pendingCall struct {
	undo func(value uint64) // destroys the result of an abandoned call; nil if there is nothing to destroy

	mu    sync.Mutex
	done  bool
	over  bool // the handle has ended, or is about to: a caller has taken the result, or abandoned the call
	value uint64
	err   error
	words map[*C.uint32_t]struct{} // of the callers that wait
}

// startPending starts f and returns the handle.
func startPending(f func() (uint64, error), undo func(uint64)) unsafe.Pointer {
	p := &pendingCall{undo: undo, words: map[*C.uint32_t]struct{}{}}
	go p.run(f)
	return handles.add(p)
}

func (p *pendingCall) run(f func() (uint64, error)) {
	var value uint64
	err := protect(func() (err error) {
		value, err = f()
		return err
	})
	p.mu.Lock()
	p.done, p.value, p.err = true, value, err
	p.wakeAll()
	abandoned := p.over
	p.mu.Unlock()
	if abandoned {
		p.discard()
	}
}

// wakeAll sets the words of all callers that wait. mu is held.
func (p *pendingCall) wakeAll() {
	for word := range p.words {
		C.kvferry_signal_word(word)
	}
}

// discard destroys the result of an abandoned call.
func (p *pendingCall) discard() {
	if p.err == nil && p.undo != nil {
		p.undo(p.value)
	}
}

func pendingOf(handle unsafe.Pointer) (*pendingCall, error) {
	what, _ := handles.find(handle)
	p, ok := what.(*pendingCall)
	if !ok {
		return nil, notUnderWay(handle)
	}
	return p, nil
}

func notUnderWay(handle unsafe.Pointer) error {
	return status.Errorf(status.InvalidArgument, "%p is no call that is under way", handle)
}

//export kvferry_go_start_engine
func kvferry_go_start_engine(store, name, transport, settings C.text_t, length C.size_t, reason *C.char) (call unsafe.Pointer) {
	run(reason, func() error {
		options, err := options(store, name, name)
		if err != nil {
			return err
		}
		protocol, err := readText("the transport", transport)
		if err != nil {
			return err
		}
		env, err := readEnvironment()
		if err != nil {
			return err
		}
		own, err := entries("the settings", (*byte)(unsafe.Pointer(settings)), length)
		if err != nil {
			return err
		}
		if err := env.add(string(own)); err != nil {
			return err
		}
		call = startPending(func() (uint64, error) {
			handle, err := createWith(env, options, protocol)
			return uint64(uintptr(handle)), err
		}, destroyUnused)
		return nil
	})
	return call
}

// createWith makes an engine with the named transport; "" stands for TCP.
func createWith(env environment, o core.Options, protocol string) (unsafe.Pointer, error) {
	handle, err := create(env, o, protocol == "", true)
	if err != nil || protocol == "" {
		return handle, err
	}
	h, e, err := liveHandleOf(handle)
	if err == nil {
		err = h.installNamed(e, protocol)
	}
	if err != nil {
		destroyUnused(uint64(uintptr(handle)))
		return nil, err
	}
	return handle, nil
}

// destroyUnused destroys an engine whose handle no caller has.
func destroyUnused(number uint64) {
	handle := *(*unsafe.Pointer)(unsafe.Pointer(&number))
	if h, err := handleOf(handle); err == nil {
		_ = h.end(handle) // the log has the error
	}
}

//export kvferry_go_start_first_buffer
func kvferry_go_start_first_buffer(engine unsafe.Pointer, segment C.text_t, reason *C.char) (call unsafe.Pointer) {
	run(reason, func() error {
		return onSegment(engine, segment, func(e *core.Engine, name string) error {
			call = startPending(func() (uint64, error) { return e.FirstBuffer(name) }, nil)
			return nil
		})
	})
	return call
}

//export kvferry_go_start_probe
func kvferry_go_start_probe(engine unsafe.Pointer, segment C.text_t, reason *C.char) (call unsafe.Pointer) {
	run(reason, func() error {
		return onSegment(engine, segment, func(e *core.Engine, name string) error {
			call = startPending(func() (uint64, error) { return 0, e.Probe(name) }, nil)
			return nil
		})
	})
	return call
}

// startWait notes a word on a caller's stack, which is set when the call has ended.
func (p *pendingCall) startWait(call unsafe.Pointer, word *C.uint32_t) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return notUnderWay(call)
	}
	if p.done {
		C.kvferry_signal_word(word)
	}
	p.words[word] = struct{}{}
	return nil
}

// endWait ends a caller's wait: nothing touches the word any more. If the call has ended, and nobody has taken its result
// before, it returns the result, and ends the handle.
func (p *pendingCall) endWait(call unsafe.Pointer, word *C.uint32_t) (value uint64, done bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.words, word)
	switch {
	case p.over:
		return 0, true, notUnderWay(call)
	case !p.done:
		return 0, false, nil
	}
	p.over = true
	handles.end(call)
	return p.value, true, p.err
}

// abandon ends the handle. Callers that wait are woken first: once the handle has ended, their waits return, and their words do not
// exist any more.
func (p *pendingCall) abandon(call unsafe.Pointer) error {
	p.mu.Lock()
	if p.over {
		p.mu.Unlock()
		return notUnderWay(call)
	}
	p.over = true
	p.wakeAll()
	clear(p.words)
	handles.end(call)
	ended := p.done
	p.mu.Unlock()
	if ended {
		p.discard()
	}
	return nil
}

//export kvferry_go_start_wait
func kvferry_go_start_wait(call unsafe.Pointer, word *C.uint32_t, reason *C.char) C.int {
	return negated(reason, func() error {
		p, err := pendingOf(call)
		if err != nil {
			return err
		}
		return p.startWait(call, word)
	})
}

// kvferry_go_end_wait stores whether the call has ended and, if so, its result. Then its handle has ended, too.
//
//export kvferry_go_end_wait
func kvferry_go_end_wait(call unsafe.Pointer, word *C.uint32_t, done *C.int, value *C.uint64_t, reason *C.char) C.int {
	return negated(reason, func() error {
		p, err := pendingOf(call)
		if err != nil {
			*done = 1
			return err
		}
		result, ended, err := p.endWait(call, word)
		if ended {
			*done, *value = 1, C.uint64_t(result)
		}
		return err
	})
}

//export kvferry_go_abandon_call
func kvferry_go_abandon_call(call unsafe.Pointer, reason *C.char) C.int {
	return negated(reason, func() error {
		p, err := pendingOf(call)
		if err != nil {
			return err
		}
		return p.abandon(call)
	})
}
