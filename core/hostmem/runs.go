package hostmem

import "unsafe"

// Copies of runs at regular places, by plain loads and stores:
//
//  1. copyRuns packs runs, or puts each into its place.
//  2. spreadRuns puts runs into their places past the processor's caches, where they consist of whole lines. A store to a line that
//     no cache has loads the line first, and the few stores that wait for that are what limits short runs: they lie at more places
//     than the processor foresees. What is stored past the caches need not be loaded, and does not displace what the kernel
//     copies next. streamRuns is in assembly, since Go has no such store.
//  3. orderStreams follows before anybody is told of the bytes: those stores have no order by themselves.

// lineSize is the length of a cache line, in bytes, and streamedRun that of the longest runs that are stored past the caches: the
// processor foresees the places of longer ones.
const (
	lineSize    = 64
	streamedRun = 4 << 10
)

// spreadRuns copies runs from a buffer, in which they lie together, to places that are step bytes apart.
func spreadRuns(dst, step, buffer, run uintptr, count uint64) {
	if streams && run <= streamedRun && (dst|step|run)%lineSize == 0 {
		streamRuns(dst, step, buffer, run, count)
		return
	}
	copyRuns(dst, step, buffer, run, run, count)
}

// copyRuns copies runs that are fromStep bytes apart to places that are toStep bytes apart.
func copyRuns(dst, toStep, src, fromStep, run uintptr, count uint64) {
	switch run {
	case 8:
		for ; count > 0; count-- {
			*(*[8]byte)(pointer(dst)) = *(*[8]byte)(pointer(src))
			dst, src = dst+toStep, src+fromStep
		}
	case 16:
		for ; count > 0; count-- {
			*(*[16]byte)(pointer(dst)) = *(*[16]byte)(pointer(src))
			dst, src = dst+toStep, src+fromStep
		}
	case 32:
		for ; count > 0; count-- {
			*(*[32]byte)(pointer(dst)) = *(*[32]byte)(pointer(src))
			dst, src = dst+toStep, src+fromStep
		}
	case 64:
		for ; count > 0; count-- {
			*(*[64]byte)(pointer(dst)) = *(*[64]byte)(pointer(src))
			dst, src = dst+toStep, src+fromStep
		}
	default:
		for ; count > 0; count-- {
			copy(At(dst, uint64(run)), At(src, uint64(run)))
			dst, src = dst+toStep, src+fromStep
		}
	}
}

// pointer is an address of memory that the collector neither keeps nor moves, or that its owner keeps alive.
func pointer(addr uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&addr)) }
