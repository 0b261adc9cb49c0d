package main

// #include "internal.h"
import "C"

import (
	"sync"
	"unsafe"

	"kvferry/core"

	"github.com/mattn/go-pointer"
)

// kvferry_open_segment, which can be interrupted:
//
//  1. Go returns the id at once if the segment is open. Otherwise it starts the open, or joins the one that is under way for the
//     same name, and notes the word of the C caller.
//  2. C waits for the word.
//  3. Go ends the wait, after which nothing touches the word, and returns the result of the open.
//
// If all callers were interrupted, the open goes on in the background until the peer answers or the attempt times out.

// opening is an open that is under way, or has ended.
type opening struct {
	key openingKey

	mu    sync.Mutex
	done  bool
	id    core.SegmentID
	err   error
	words map[*C.uint32_t]struct{} // of the callers that wait
}

type openingKey struct {
	engine *core.Engine
	name   string
}

// openings are the opens that are under way.
var openings = struct {
	sync.Mutex
	byKey map[openingKey]*opening
}{byKey: map[openingKey]*opening{}}

// openingOf starts or joins an open.
func openingOf(key openingKey) *opening {
	openings.Lock()
	defer openings.Unlock()
	o := openings.byKey[key]
	if o == nil {
		o = &opening{key: key, words: map[*C.uint32_t]struct{}{}}
		openings.byKey[key] = o
		go o.run()
	}
	return o
}

func (o *opening) run() {
	var id core.SegmentID
	err := protect(func() (err error) {
		id, err = o.key.engine.OpenSegment(o.key.name)
		return err
	})
	openings.Lock()
	delete(openings.byKey, o.key)
	openings.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done, o.id, o.err = true, id, err
	for word := range o.words {
		C.kvferry_signal_word(word)
	}
}

// openWait is one caller's wait.
type openWait struct {
	opening *opening
	word    *C.uint32_t
}

// kvferry_go_start_open returns the segment's id or a negated code, or leaves the handle of a wait.
//
//export kvferry_go_start_open
func kvferry_go_start_open(engine unsafe.Pointer, segment C.text_t, word *C.uint32_t, handle *unsafe.Pointer, reason *C.char) (id C.int32_t) {
	code := negated(reason, func() error {
		return onSegment(engine, segment, func(e *core.Engine, name string) error {
			opened, ok, err := e.Opened(name)
			if err != nil || ok {
				id = C.int32_t(opened)
				return err
			}
			*handle = pointer.Save(openingOf(openingKey{e, name}).wait(word))
			return nil
		})
	})
	return orCode(code, id)
}

// wait notes a word, which is set when the open has ended.
func (o *opening) wait(word *C.uint32_t) *openWait {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.done {
		C.kvferry_signal_word(word)
	}
	o.words[word] = struct{}{}
	return &openWait{o, word}
}

// kvferry_go_end_open returns the segment's id or a negated code, and stores whether the open has ended.
//
//export kvferry_go_end_open
func kvferry_go_end_open(handle unsafe.Pointer, done *C.int, reason *C.char) (id C.int32_t) {
	code := negated(reason, func() error {
		w := pointer.Restore(handle).(*openWait)
		pointer.Unref(handle)
		w.opening.mu.Lock()
		defer w.opening.mu.Unlock()
		delete(w.opening.words, w.word)
		if w.opening.done {
			*done = 1
		}
		id = C.int32_t(w.opening.id)
		return w.opening.err
	})
	return orCode(code, id)
}
