package main

// #include "internal.h"
import "C"

import (
	"errors"
	"math"
	"sync/atomic"
	"unsafe"

	"kvferry/core/status"
	"kvferry/metaserver"
)

// serverHandle is a metadata server, with its handle's state.
type serverHandle struct {
	server   atomic.Pointer[metaserver.Server] // nil once stopped
	closeLog func() error
}

//export kvferry_go_start_metadata_server
func kvferry_go_start_metadata_server(o C.server_options_t, clientCA C.text_t, out *C.char, size C.size_t, reason *C.char) (handle unsafe.Pointer) {
	run(reason, func() error {
		if o == nil {
			return status.Errorf(status.InvalidArgument, "the options of the metadata server are NULL")
		}
		if out == nil || size == 0 {
			return status.Errorf(status.InvalidArgument, "there is no room for the connection string of the metadata server")
		}
		options := serverOptions(o)
		options.TLSClientCA = C.GoString(clientCA)
		s, closeLog, err := startServer(options)
		if err != nil {
			return err
		}
		h := &serverHandle{closeLog: closeLog}
		h.server.Store(s)
		writeText(out, size, s.Address())
		handle = handles.add(h)
		return nil
	})
	return handle
}

// serverOptions copies the options from C. The server checks them. A number above the range of int64 becomes its maximum.
func serverOptions(o C.server_options_t) metaserver.Options {
	number := func(n C.uint64_t) int64 { return int64(min(uint64(n), math.MaxInt64)) }
	return metaserver.Options{
		Host: C.GoString(o.host), Port: int(o.port), Path: C.GoString(o.path), Snapshot: C.GoString(o.snapshot),
		Token: C.GoString(o.token), TLSCert: C.GoString(o.tls_cert), TLSKey: C.GoString(o.tls_key),
		MaxKeys: number(o.max_keys), MaxValue: number(o.max_value), MaxBytes: number(o.max_bytes),
		MaxConnections: number(o.max_connections),
	}
}

// startServer starts a server that logs as the environment says.
func startServer(o metaserver.Options) (*metaserver.Server, func() error, error) {
	env, err := readEnvironment()
	if err != nil {
		return nil, nil, err
	}
	_, log, closeLog := env.settings()
	o.Log = log
	s, err := metaserver.Start(o)
	if err != nil {
		return nil, nil, errors.Join(err, closeLog())
	}
	return s, closeLog, nil
}

//export kvferry_go_stop_metadata_server
func kvferry_go_stop_metadata_server(handle unsafe.Pointer, reason *C.char) C.int {
	return negated(reason, func() error {
		if handle == nil {
			return status.Errorf(status.InvalidArgument, "the metadata server's handle is NULL")
		}
		what, ended := handles.find(handle)
		if ended {
			return status.Errorf(status.InvalidArgument, "the metadata server %p was stopped", handle)
		}
		h, ok := what.(*serverHandle)
		if !ok {
			return status.Errorf(status.InvalidArgument, "%p is not the handle of a metadata server of this library", handle)
		}
		s := h.server.Swap(nil)
		if s == nil {
			return status.Errorf(status.InvalidArgument, "the metadata server %p was stopped", handle)
		}
		defer handles.end(handle)
		return errors.Join(s.Close(), h.closeLog())
	})
}
