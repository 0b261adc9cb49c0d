package main

// #include "internal.h"
import "C"

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"kvferry/core"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// environment is a copy of the variables that the C library has. Go's own copy dates from when the library was loaded. The
// header has the rule for programs that change variables.
type environment map[string]string

// readEnvironment copies the variables in one go: all settings of an engine are those of one moment.
func readEnvironment() (environment, error) {
	var length C.size_t
	block := C.kvferry_copy_environment(&length)
	if block == nil {
		return nil, status.Errorf(status.Memory, "there is no memory for a copy of the environment")
	}
	defer C.free(unsafe.Pointer(block))
	return parseEnvironment(unsafe.String((*byte)(unsafe.Pointer(block)), int(length))), nil
}

// parseEnvironment takes variables apart that each end with a NUL. Of several with one name the first counts, as for getenv.
func parseEnvironment(block string) environment {
	env := environment{}
	for entry := range strings.SplitSeq(strings.Clone(block), "\x00") {
		name, value, ok := strings.Cut(entry, "=")
		if _, known := env[name]; ok && !known {
			env[name] = value
		}
	}
	return env
}

// add adds the settings of one engine, which take precedence. Each is NAME=VALUE and ends with a NUL. They are checked: an error
// says which one is none, or has no valid value, where a variable of the environment would be ignored.
func (env environment) add(settings string) error {
	for entry := range strings.SplitSeq(strings.TrimSuffix(settings, "\x00"), "\x00") {
		if settings != "" && !strings.Contains(entry, "=") {
			return status.Errorf(status.InvalidArgument, "a setting is NAME=VALUE, and %.40q has no =", entry)
		}
	}
	own := parseEnvironment(settings)
	for _, name := range slices.Sorted(maps.Keys(own)) {
		if !core.IsSetting(name) {
			return status.Errorf(status.InvalidArgument, "%.100q is no setting of an engine", name)
		}
	}
	_, warnings := core.LoadConfig(own.lookup)
	for _, w := range warnings {
		return status.Errorf(status.InvalidArgument, "%s: %.100q is not valid: %.200s", w.Variable, w.Value, w.Reason)
	}
	maps.Copy(env, own)
	return nil
}

func (env environment) lookup(variable string) (value string, ok bool) {
	value, ok = env[variable]
	return value, ok
}

// getenv looks up one variable as the C library has it now.
func getenv(variable string) (string, bool) {
	name := C.CString(variable)
	defer C.free(unsafe.Pointer(name))
	value := C.getenv(name)
	if value == nil {
		return "", false
	}
	return C.GoString(value), true
}

// unknownReported are the names that warnOfUnknown has warned of.
var unknownReported sync.Map

// warnOfUnknown warns of variables that look like settings and are none, of each once in the life of the process.
func (env environment) warnOfUnknown(log *zap.Logger) {
	for _, name := range slices.Sorted(maps.Keys(env)) {
		text := core.UnknownVariable(name)
		if text == "" {
			continue
		}
		if _, reported := unknownReported.LoadOrStore(name, nil); !reported {
			log.Warn(text)
		}
	}
}
