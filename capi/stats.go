package main

// #include "internal.h"
import "C"

import (
	"encoding/json"
	"unsafe"

	"kvferry/core"
	"kvferry/core/metrics"
	"kvferry/core/status"
)

//export kvferry_go_stats
func kvferry_go_stats(engine unsafe.Pointer, out *C.kvferry_stats_t, size C.size_t, reason *C.char) C.int {
	return negated(reason, func() error {
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		if out == nil {
			return status.Errorf(status.InvalidArgument, "there is no room for the statistics of %s: NULL", e.Name())
		}
		all := mainStats(e.Stats())
		copyStruct(out, size, &all)
		return nil
	})
}

// mainStats are the main counters of a description.
func mainStats(s *metrics.Stats) (c C.kvferry_stats_t) {
	var batches metrics.Durations
	for _, d := range s.Batches {
		batches.Count += d.Count
		c.batch_nanoseconds += C.uint64_t(d.Sum * 1e9)
	}
	c.batches, c.failed_batches = C.uint64_t(batches.Count), C.uint64_t(s.FailedBatches)
	c.read_requests, c.write_requests = C.uint64_t(s.Requests["read"]), C.uint64_t(s.Requests["write"])
	c.read_bytes, c.write_bytes = C.uint64_t(s.Bytes["read"]), C.uint64_t(s.Bytes["write"])
	for _, n := range s.Failures {
		c.failed_requests += C.uint64_t(n)
	}
	c.requests_in_flight, c.bytes_in_flight = C.uint64_t(s.Unfinished.Requests), C.uint64_t(s.Unfinished.Bytes)
	for i := range s.Target {
		t := &s.Target[i]
		c.served_read_requests += C.uint64_t(t.Read.Requests)
		c.served_write_requests += C.uint64_t(t.Write.Requests)
		c.served_read_bytes += C.uint64_t(t.Read.All())
		c.served_write_bytes += C.uint64_t(t.Write.All())
	}
	c.sessions = C.uint64_t(s.Sessions.Open)
	c.refused_connections = C.uint64_t(s.Sessions.Refused + s.Sessions.Failed + s.Sessions.Foreign + s.Handshakes.Refused + s.Handshakes.Plain)
	c.dropped_log_lines = C.uint64_t(s.Process.DroppedLogLines)
	return c
}

//export kvferry_go_stats_json
func kvferry_go_stats_json(engine unsafe.Pointer, out *C.char, size C.size_t, reason *C.char) (length C.int64_t) {
	return writeJSON(out, size, reason, func() (any, error) {
		e, err := engineOf(engine)
		if err != nil {
			return nil, err
		}
		return e.Stats(), nil
	})
}

//export kvferry_go_settings_json
func kvferry_go_settings_json(out *C.char, size C.size_t, reason *C.char) C.int64_t {
	return writeJSON(out, size, reason, func() (any, error) {
		env, err := readEnvironment()
		return core.Describe(env), err
	})
}

// writeJSON writes what describe returns to a buffer of size bytes, which may be nil, and returns the length of the whole text.
func writeJSON(out *C.char, size C.size_t, reason *C.char, describe func() (any, error)) (length C.int64_t) {
	code := negated(reason, func() error {
		described, err := describe()
		if err != nil {
			return err
		}
		text, err := json.Marshal(described)
		if err != nil {
			return status.Errorf(status.Context, "%w", err)
		}
		length = C.int64_t(len(text))
		if out != nil && size > 0 {
			writeText(out, size, string(text))
		}
		return nil
	})
	return orCode(code, length)
}
