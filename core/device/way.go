package device

import (
	"fmt"
	"strings"
)

// Way is a way of copying many blocks between a device and a staging block. The planner of core/staging chooses among those
// that a device's Traits name.
type Way int

const (
	Single Way = iota // a copy for each block: Stream.Copy
	Batch             // all blocks in one call: Stream.CopyBatch
	Gather            // copies within the device to or from a gather block, and one copy between that and the host
	Kernel            // one kernel of the device that reads and writes the host's memory: KernelStream.CopyKernel
	Matrix            // blocks at one distance from each other, as the rows of a matrix: MatrixStream.CopyMatrix

	WayCount // how many ways there are
)

var wayNames = [WayCount]string{"single", "batch", "gather", "kernel", "matrix"}

func (w Way) String() string { return wayNames[w] }

// ParseWay is the opposite of String.
func ParseWay(text string) (Way, error) {
	for w, name := range wayNames {
		if name == text {
			return Way(w), nil
		}
	}
	return 0, fmt.Errorf("%q is none of %s", text, strings.Join(wayNames[:], ", "))
}

// Ways is a set of ways.
type Ways uint

// WaysOf is the set of these ways.
func WaysOf(ways ...Way) Ways {
	var set Ways
	for _, w := range ways {
		set |= 1 << w
	}
	return set
}

// Has reports whether a way is in the set.
func (s Ways) Has(w Way) bool { return s>>w&1 != 0 }

// Without is the set without a way.
func (s Ways) Without(w Way) Ways { return s &^ (1 << w) }

func (s Ways) String() string {
	var names []string
	for w := range WayCount {
		if s.Has(w) {
			names = append(names, w.String())
		}
	}
	return strings.Join(names, ", ")
}
