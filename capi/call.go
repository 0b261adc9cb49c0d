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

// maxEntries bounds the arrays that are taken from C: a count beyond it is a mistake, not a request.
const maxEntries = 1 << 31

// run is the body of every exported function: it calls f and returns its status code. The reason of an error is left
// in *reason, a buffer of REASON_SIZE bytes.
func run(reason *C.char, f func() error) status.Code {
	err := protect(f)
	if err == nil {
		return status.OK
	}
	writeText(reason, C.REASON_SIZE, err.Error())
	return status.Of(err, status.Context)
}

// protect calls f. A panic becomes an error, and its stack is logged to standard error: it never reaches C.
func protect(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			core.LogInternalError(fmt.Sprintf("kvferry: internal error: %v\n%s", p, debug.Stack()))
			err = status.Errorf(status.Context, "internal error: %v", p)
		}
	}()
	return f()
}

// negated is run for the functions that return negated codes.
func negated(reason *C.char, f func() error) C.int { return -C.int(run(reason, f)) }

// orCode is the code where there is one, and the value where the function succeeded.
func orCode[T ~int32 | ~int64](code C.int, value T) T {
	if code != 0 {
		return T(code)
	}
	return value
}

// positive is run for the functions that return status codes as they are.
func positive(reason *C.char, f func() error) C.int { return C.int(run(reason, f)) }

// writeText writes text and a NUL into a buffer of size bytes, cut between characters where it does not fit. text ends
// at its first NUL.
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

// readText copies a string from C. what names the argument in the error for NULL.
func readText(what string, s *C.char) (string, error) {
	if s == nil {
		return "", status.Errorf(status.InvalidArgument, "%s is NULL", what)
	}
	return C.GoString(s), nil
}

// entries views an array in C's memory, which stays C's. what names it in errors.
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
