package cuda

import (
	"testing"

	"kvferry/core/device"
)

// SetBlocks sets how many blocks a kernel has, until the test ends.
func SetBlocks(t testing.TB, kind device.Kind, number uint) {
	before := blocks[kind]
	blocks[kind] = number
	t.Cleanup(func() { blocks[kind] = before })
}

// Decide returns where memory is, from CUDA's answer. named is the device of a location, -1 for none.
func Decide(kind int, managed bool, index, named int) (on int, found bool, err error) {
	return memory{kind, managed, index}.On(named)
}
