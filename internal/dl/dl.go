// Package dl opens shared libraries at run time.
package dl

// #cgo CFLAGS: -std=c99
// #cgo LDFLAGS: -ldl -pthread
// #include <dlfcn.h>
// #include <stdlib.h>
// #include "dl.h"
import "C"

import (
	"errors"
	"iter"
	"os"
	"runtime"
	"strings"
	"sync"
	"unsafe"
)

// Library is a shared library that has been opened. Two of the same library are equal.
type Library struct{ handle unsafe.Pointer }

// Open opens a library by its path, or by its name along the loader's search path, and resolves all its symbols now. The
// error is the loader's.
func Open(name string) (Library, error) { return open(name, C.RTLD_NOW|C.RTLD_LOCAL) }

// absent are the libraries that Loaded did not find, each with kvferry_dl_loads at that time.
var absent sync.Map

// Loaded opens a library if the process has loaded it already. The loader searches its whole path for a library that is
// not there, so Loaded asks it again only when something was loaded since.
func Loaded(name string) (Library, bool) {
	loads := C.kvferry_dl_loads()
	if last, known := absent.Load(name); known && last == loads {
		return Library{}, false
	}
	library, err := open(name, C.RTLD_NOW|C.RTLD_LOCAL|C.RTLD_NOLOAD)
	if err != nil {
		absent.Store(name, loads)
	}
	return library, err == nil
}

func open(name string, flags C.int) (Library, error) {
	if err := checkRegular(name); err != nil {
		return Library{}, err
	}
	runtime.LockOSThread() // dlerror is about the last call of its thread
	defer runtime.UnlockOSThread()
	path := C.CString(name)
	defer C.free(unsafe.Pointer(path))
	handle := C.kvferry_dl_open(path, flags)
	if handle != nil {
		return Library{handle}, nil
	}
	if reason := C.dlerror(); reason != nil {
		return Library{}, errors.New(C.GoString(reason))
	}
	return Library{}, errors.New(name + " is not loaded")
}

// checkRegular refuses a path to what is no file. The loader would wait for the other end of a pipe.
func checkRegular(name string) error {
	if !strings.Contains(name, "/") {
		return nil // the loader searches for it
	}
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return errors.New(name + ": it is not a regular file")
	}
	return nil
}

// Symbol returns the address of a function or variable, nil where the library has none of that name.
func (l Library) Symbol(name string) unsafe.Pointer {
	symbol := C.CString(name)
	defer C.free(unsafe.Pointer(symbol))
	return C.dlsym(l.handle, symbol)
}

// Symbol is a function of a library, and its place in a table of functions.
type Symbol struct {
	Name     string
	Offset   uintptr // of the pointer to it in the table, in bytes
	Optional bool    // the library may lack it: the pointer is nil then
}

// Table returns a table of size bytes with the addresses of the functions. It is C memory, and is never freed.
func (l Library) Table(size uintptr, symbols iter.Seq[Symbol]) (unsafe.Pointer, error) {
	table := C.calloc(1, C.size_t(size))
	for symbol := range symbols {
		address := l.Symbol(symbol.Name)
		if address == nil && !symbol.Optional {
			C.free(table)
			return nil, errors.New("it has no function " + symbol.Name)
		}
		*(*unsafe.Pointer)(unsafe.Add(table, symbol.Offset)) = address
	}
	return table, nil
}

// Close undoes one Open: the last one unloads the library.
func (l Library) Close() { C.kvferry_dl_close(l.handle) }
