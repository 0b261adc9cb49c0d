package hostmem

// streams says that streamRuns is there.
const streams = true

// streamRuns copies runs of whole cache lines from a buffer, in which they lie together, to places that begin with a line. There is
// at least one run, of one line. A fault is a panic, as in a copy of Go. Another thread may see later stores of this one before
// the copied bytes, until orderStreams was called.
//
//go:noescape
func streamRuns(dst, step, buffer, run uintptr, count uint64)

// orderStreams has every thread see what streamRuns has stored so far before it sees a later store of this thread.
func orderStreams()
