package ascend

import "time"

// Decide returns where memory is, from AscendCL's answer: a kind and an id. named is the device of a location, -1 for none.
func Decide(kind, id, named int) (index int, found bool, err error) {
	return memory{kind: kind, index: id}.On(named)
}

// Milliseconds is a limit as AscendCL gets it.
func Milliseconds(timeout time.Duration) int { return int(milliseconds(timeout)) }
