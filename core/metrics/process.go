package metrics

import (
	"bytes"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"syscall"
)

// ReadProcess describes this process, without the log lines.
func ReadProcess() Process {
	p := Process{Goroutines: uint64(runtime.NumGoroutine()), HeapBytes: heapBytes(), OpenFiles: openFiles()}
	if state, err := os.ReadFile("/proc/self/status"); err == nil {
		p.Threads = statusValue(state, "Threads:")
		p.ResidentBytes = statusValue(state, "VmRSS:") << 10
	}
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		p.MaxFiles = limit.Cur
	}
	return p
}

// statusValue is a number of /proc/self/status, in its unit; 0 if it is not there.
func statusValue(state []byte, key string) uint64 {
	_, after, _ := bytes.Cut(state, []byte("\n"+key))
	line, _, _ := bytes.Cut(after, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseUint(string(fields[0]), 10, 64)
	return n
}

// openFiles is how many descriptors are open, without the one that it is found out by.
func openFiles() uint64 {
	folder, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0
	}
	defer folder.Close()
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return 0
	}
	return uint64(len(names) - 1)
}

func heapBytes() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}
