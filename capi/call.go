package main

// #include "internal.h"
import "C"

import (
	"fmt"
	"runtime/debug"
	"unicode/utf8"
	"unsafe"

	"kvferry/core"
	"kvferry/core/status"
)

// maxEntries is the most entries of an array from C: a higher count is a mistake of the caller.
const maxEntries = 1 << 31

// Every exported function has one of these as its body. Each calls f, and leaves the text of its error in *reason, a buffer of
// REASON_SIZE bytes. They differ in their result: run and positive return the status code as it is, negated ones return it
// negated. Those for the functions of transfer_engine_c.h also log the error: see logFailure.

func run(reason *C.char, f func() error) status.Code {
	err := protect(f)
	if err == nil {
		return status.OK
	}
	writeText(reason, C.REASON_SIZE, err.Error())
	return status.Of(err, status.Context)
}

func negated(reason *C.char, f func() error) C.int { return -C.int(run(reason, f)) }

// runLogged is run for the public function of that name. engine is its engine's handle, or nil.
func runLogged(function string, engine unsafe.Pointer, reason *C.char, f func() error) status.Code {
	code := run(reason, f)
	if code != status.OK {
		logFailure(engine, function, C.GoString(reason))
	}
	return code
}

func positiveLogged(function string, engine unsafe.Pointer, reason *C.char, f func() error) C.int {
	return C.int(runLogged(function, engine, reason, f))
}

func negatedLogged(function string, engine unsafe.Pointer, reason *C.char, f func() error) C.int {
	return -C.int(runLogged(function, engine, reason, f))
}

// protect calls f. A panic in it becomes an error, and its stack is written to standard error: no panic reaches C.
func protect(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			core.LogInternalError(fmt.Sprintf("kvferry: internal error: %v\n%s", p, debug.Stack()))
			err = status.Errorf(status.Context, "internal error: %v", p)
		}
	}()
	return f()
}

// orCode is the value if the function has succeeded, and its code otherwise.
func orCode[T ~int32 | ~int64](code C.int, value T) T {
	if code != 0 {
		return T(code)
	}
	return value
}

// writeText writes text and a NUL into a buffer of size bytes. Text that does not fit is cut between two characters.
func writeText(buffer *C.char, size C.size_t, text string) {
	if size == 0 {
		return
	}
	if uint64(len(text)) >= uint64(size) {
		cut := int(size) - 1
		for cut > 0 && !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut]
	}
	out := unsafe.Slice((*byte)(unsafe.Pointer(buffer)), len(text)+1)
	copy(out, text)
	out[len(text)] = 0
}

// copyStruct fills a struct of the caller's, which has that size: members that the library does not know are 0 in it.
func copyStruct[T any](to *T, size C.size_t, from *T) {
	known := unsafe.Slice((*byte)(unsafe.Pointer(from)), unsafe.Sizeof(*from))
	room := unsafe.Slice((*byte)(unsafe.Pointer(to)), size)
	clear(room[copy(room, known):])
}

// readText copies a string from C. what names the argument in the error for NULL.
func readText(what string, s *C.char) (string, error) {
	if s == nil {
		return "", status.Errorf(status.InvalidArgument, "%s is NULL", what)
	}
	return C.GoString(s), nil
}

// entries is an array in C's memory as a slice, which must not be kept. what names it in errors.
func entries[T any](what string, first *T, count C.size_t) ([]T, error) {
	switch {
	case count == 0:
		return nil, nil
	case first == nil:
		return nil, status.Errorf(status.InvalidArgument, "%s is NULL and said to have %d entries", what, uint64(count))
	case count > maxEntries:
		return nil, status.Errorf(status.InvalidArgument, "%s is said to have %d entries, more than %d",
			what, uint64(count), uint64(maxEntries))
	}
	return unsafe.Slice(first, int(count)), nil
}
