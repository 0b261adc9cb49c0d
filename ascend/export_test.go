package ascend

import "time"

// Decide tells where memory is that AscendCL says to be of a kind, with that id; named is as in a location, -1 for none.
func Decide(kind, id, named int) (index int, found bool, err error) {
	return memory{kind: kind, index: id}.On(named)
}

// Milliseconds is a limit as AscendCL gets it.
func Milliseconds(timeout time.Duration) int { return int(milliseconds(timeout)) }
