package main

// #include "internal.h"
import "C"

import (
	"context"
	"encoding/json"
	"time"
	"unsafe"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/status"
)

// Calls whose result is a text: a handle, from which the caller copies the text and which it frees.

// text is what such a handle stands for.
type text string

// startDescribing starts a call whose result is the JSON of what f returns.
func startDescribing[T any](f func() (T, error)) unsafe.Pointer {
	return startPending(func() (uint64, error) {
		value, err := f()
		if err != nil {
			return 0, err
		}
		encoded, err := json.Marshal(value)
		if err != nil {
			return 0, status.Errorf(status.Context, "%w", err)
		}
		return uint64(uintptr(handles.add(text(encoded)))), nil
	}, freeUnused)
}

// freeUnused frees a text whose handle no caller has.
func freeUnused(number uint64) { handles.end(*(*unsafe.Pointer)(unsafe.Pointer(&number))) }

//export kvferry_go_start_describe
func kvferry_go_start_describe(engine unsafe.Pointer, segment C.text_t, reason *C.char) (call unsafe.Pointer) {
	run(reason, func() error {
		return onSegment(engine, segment, func(e *core.Engine, name string) error {
			call = startDescribing(func() (*core.Description, error) { return e.Describe(name) })
			return nil
		})
	})
	return call
}

//export kvferry_go_start_members
func kvferry_go_start_members(store, name C.text_t, timeout C.int64_t, reason *C.char) (call unsafe.Pointer) {
	run(reason, func() error {
		o, closeLog, err := directoryOptions(store)
		if err != nil {
			return err
		}
		var names []string
		if only := C.GoString(name); only != "" {
			names = []string{only}
		}
		call = startDescribing(func() (members []metadata.Member, err error) {
			defer func() { _ = closeLog() }()
			ctx, done := limited(timeout)
			defer done()
			err = core.WithDirectory(o, func(d metadata.Directory) (err error) {
				members, err = d.Members(ctx, names)
				return err
			})
			return members, err
		})
		return nil
	})
	return call
}

//export kvferry_go_start_forget
func kvferry_go_start_forget(store, name C.text_t, force C.int, reason *C.char) (call unsafe.Pointer) {
	run(reason, func() error {
		o, closeLog, err := directoryOptions(store)
		if err != nil {
			return err
		}
		only, err := readText("the name", name)
		if err != nil {
			return err
		}
		call = startPending(func() (uint64, error) {
			defer func() { _ = closeLog() }()
			return 0, core.WithDirectory(o, func(d metadata.Directory) error {
				return d.Forget(context.Background(), only, force != 0)
			})
		}, nil)
		return nil
	})
	return call
}

// directoryOptions are the settings of the environment for a metadata store.
func directoryOptions(store C.text_t) (o core.Options, closeLog func() error, err error) {
	if o.Metadata, err = readText("the metadata connection string", store); err != nil {
		return o, nil, err
	}
	env, err := readEnvironment()
	if err != nil {
		return o, nil, err
	}
	o.Config, o.Log, closeLog = env.settings()
	return o, closeLog, nil
}

// limited is a context that ends after a number of milliseconds; a negative one is no limit.
func limited(milliseconds C.int64_t) (context.Context, context.CancelFunc) {
	if milliseconds < 0 {
		return context.WithCancel(context.Background())
	}
	const longest = 365 * 24 * time.Hour
	limit := time.Duration(min(int64(milliseconds), longest.Milliseconds())) * time.Millisecond
	return context.WithTimeout(context.Background(), limit)
}

//export kvferry_go_text
func kvferry_go_text(handle unsafe.Pointer, out *C.char, size C.size_t, reason *C.char) (length C.int64_t) {
	code := negated(reason, func() error {
		t, err := found[text](handle, "text")
		if err != nil {
			return err
		}
		length = C.int64_t(len(t))
		if out != nil {
			writeText(out, size, string(t))
		}
		return nil
	})
	return orCode(code, length)
}

//export kvferry_go_free_text
func kvferry_go_free_text(handle unsafe.Pointer, reason *C.char) C.int {
	return negated(reason, func() error { return endOf[text](handle, "text") })
}
