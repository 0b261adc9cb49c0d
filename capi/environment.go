package main

// #include "internal.h"
import "C"

import (
	"strings"
	"sync"
	"unsafe"

	"kvferry/core"

	"go.uber.org/zap"
)

// environment looks a variable up as the C library sees it: Go's own view dates from when the library was loaded.
func environment(variable string) (string, bool) {
	name := C.CString(variable)
	defer C.free(unsafe.Pointer(name))
	value := C.getenv(name)
	if value == nil {
		return "", false
	}
	return C.GoString(value), true
}

// environmentNames are the variables that the C library has now.
func environmentNames() []string {
	var names []string
	for entry := C.environ; entry != nil && *entry != nil; entry = next(entry) {
		name, _, _ := strings.Cut(C.GoString(*entry), "=")
		names = append(names, name)
	}
	return names
}

func next[T any](element *T) *T {
	return (*T)(unsafe.Add(unsafe.Pointer(element), unsafe.Sizeof(*element)))
}

// unknownTold are the names that warnOfUnknown has warned of.
var unknownTold sync.Map

// warnOfUnknown warns of variables that look like settings and are none, of each once in the life of the process.
func warnOfUnknown(log *zap.Logger) {
	for _, name := range environmentNames() {
		text := core.UnknownVariable(name)
		if text == "" {
			continue
		}
		if _, told := unknownTold.LoadOrStore(name, nil); !told {
			log.Warn(text)
		}
	}
}
