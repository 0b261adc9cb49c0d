package cuda

// Decide tells where memory is of which CUDA says that; named is as in a location, -1 for none.
func Decide(kind int, managed bool, index, named int) (on int, found bool, err error) {
	return memory{kind, managed, index}.On(named)
}
