// Package main is the C interface of the engine, built as a shared and as a static library.
//
// The public functions are in C, in exports.c and exports_ext.c: they must not enter Go in a forked child. internal.h has the steps
// of a call. The Go functions that they call are named kvferry_go_*, and are not exported from the shared library.
package main

// #cgo CFLAGS: -std=c99 -D_GNU_SOURCE -I${SRCDIR}/include
// #include "internal.h"
import "C"

// main is never called. It refers to kvferry_restore_signal_mask, which must be linked after the Go runtime.
func main() { C.kvferry_restore_signal_mask() }
