package cuda

// Decide returns where memory is, from CUDA's answer. named is the device of a location, -1 for none.
func Decide(kind int, managed bool, index, named int) (on int, found bool, err error) {
	return memory{kind, managed, index}.On(named)
}
