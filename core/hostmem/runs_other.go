//go:build !amd64

package hostmem

// streams: see runs_amd64.go.
const streams = false

func streamRuns(_, _, _, _ uintptr, _ uint64) {}

func orderStreams() {}
