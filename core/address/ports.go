package address

import (
	"crypto/rand"
	"iter"
	"math/big"
)

// shuffled yields the ports in [first, last], each once, in a random order. The numbers come from the kernel: a generator
// that is seeded once in a process would give siblings that were forked without exec the same order.
func shuffled(first, last int) iter.Seq[int] {
	return func(yield func(int) bool) {
		ports := make([]int, last-first+1)
		for i := range ports {
			ports[i] = first + i
		}
		for len(ports) > 0 {
			at, _ := rand.Int(rand.Reader, big.NewInt(int64(len(ports)))) // never fails: it ends the process instead
			i, end := int(at.Int64()), len(ports)-1
			if !yield(ports[i]) {
				return
			}
			ports[i] = ports[end]
			ports = ports[:end]
		}
	}
}
