// Package status holds the result codes of the engine and the error type that carries one.
//
// The numbers are those of Mooncake's C interface. Functions that submit or query transfers return them as they
// are; the functions on memory and segments return them negated.
package status

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// Code is a result code. Zero is success.
type Code int

// The codes of the C interface.
const (
	OK                    Code = 0
	InvalidArgument       Code = 1
	TooManyRequests       Code = 2
	AddressNotRegistered  Code = 3
	BatchBusy             Code = 4 // tasks have not ended, or memory is still in use
	DeviceNotFound        Code = 6
	AddressOverlapped     Code = 7
	NotSupportedTransport Code = 8
	DNS                   Code = 101
	Socket                Code = 102
	MalformedJSON         Code = 103
	RejectHandshake       Code = 104
	Metadata              Code = 200
	Endpoint              Code = 201
	Context               Code = 202
	Numa                  Code = 300
	Clock                 Code = 301
	Memory                Code = 302
	NotImplemented        Code = 999
)

// Error is an error with a result code.
type Error struct {
	Code Code
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an error with a code; format and args are those of fmt.Errorf, %w included.
func Errorf(code Code, format string, args ...any) error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}

// Of returns the code of an error: OK for nil, and for an error that carries none the fallback.
func Of(err error, fallback Code) Code {
	if err == nil {
		return OK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return fallback
}

// Guard calls f and returns its error. A panic in f is a mistake in this library, which a peer's bytes may have triggered. It becomes
// an error with code Context and the stack in its text: it ends the work of f, and not the process.
func Guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Errorf(Context, "internal error: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}
