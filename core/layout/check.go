package layout

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// What a layout may have at most. A layout within these limits takes little memory and time, whoever has sent it.
const (
	MaxDType       = 32 // bytes of the name
	MaxElementSize = 1 << 20
	MaxBlocks      = 1 << 32
	MaxBlockTokens = 1 << 20
	MaxLayers      = 4096
	MaxHeads       = 1 << 16
	MaxDim         = 1 << 20
	MaxTensors     = 1024
	MaxAddresses   = 1 << 14 // of all tensors
)

// maxComparisons is how many comparisons of interleaved tensors, axis by axis, are made before a layout is refused.
// They take less than a second.
const maxComparisons = 1 << 20

// Check says what is wrong with a layout: a size beyond its limit, memory beyond the end of the address space,
// elements that share bytes, elements that are there twice. The other functions of the package need a layout without
// fault.
func (l *Layout) Check() error {
	if err := l.checkSizes(); err != nil {
		return err
	}
	addresses := 0
	for i := range l.Tensors {
		if err := l.checkTensor(&l.Tensors[i]); err != nil {
			return fmt.Errorf("tensor %d: %w", i, err)
		}
		addresses += len(l.Tensors[i].Addresses)
	}
	if addresses > MaxAddresses {
		return fmt.Errorf("the tensors have %d addresses, where %d are allowed", addresses, MaxAddresses)
	}
	if err := l.checkBoxes(); err != nil {
		return err
	}
	return l.checkMemory()
}

func (l *Layout) checkSizes() error {
	for _, size := range []struct {
		name       string
		value, max uint64
	}{
		{"element size", l.ElementSize, MaxElementSize}, {"number of blocks", l.Blocks, MaxBlocks},
		{"tokens in a block", l.BlockTokens, MaxBlockTokens}, {"number of layers", l.Layers, MaxLayers},
		{"number of K and V", l.KV, 2}, {"elements of a head", l.Dim, MaxDim}, {"number of heads", l.HeadsOf, MaxHeads},
		{"number of tensors", uint64(len(l.Tensors)), MaxTensors},
	} {
		if size.value < 1 || size.value > size.max {
			return fmt.Errorf("%s is %d, where 1 to %d is allowed", size.name, size.value, size.max)
		}
	}
	if len(l.DType) > MaxDType {
		return fmt.Errorf("the name of the element type has %d bytes, where %d are allowed", len(l.DType), MaxDType)
	}
	for _, c := range l.DType {
		if c < '!' || c > '~' {
			return fmt.Errorf("the name of the element type, %q, has other characters than letters, digits and signs", l.DType)
		}
	}
	return l.Heads.within("heads", l.HeadsOf)
}

// within says that a span has none of [0, of), or others, too.
func (s Span) within(name string, of uint64) error {
	if s.Count < 1 || s.First >= of || s.Count > of-s.First {
		return fmt.Errorf("%s: %d from %d on are not within %d", name, s.Count, s.First, of)
	}
	return nil
}

func (l *Layout) checkTensor(t *Tensor) error {
	if err := t.layers().within("layers", l.Layers); err != nil {
		return err
	}
	if err := t.KV.within("K and V", l.KV); err != nil {
		return err
	}
	if err := t.Dims.within("elements of a head", l.Dim); err != nil {
		return err
	}
	bytes, err := nested(l.axes(t), l.ElementSize)
	if err != nil {
		return err
	}
	for i, address := range t.Addresses {
		if address > math.MaxInt64-bytes {
			return fmt.Errorf("layer %d: %d bytes at %#x go beyond the end of the address space",
				t.FirstLayer+uint64(i), bytes, address)
		}
	}
	return nil
}

// axis is a row of elements, or of smaller axes.
type axis struct {
	name   string
	count  uint64
	stride uint64 // bytes
}

// axes are those axes of a tensor's memory that have more than one element, the outermost first.
func (l *Layout) axes(t *Tensor) []axis {
	axes := []axis{
		{"block", l.Blocks, t.Strides.Block}, {"K and V", t.KV.Count, t.Strides.KV},
		{"token", l.BlockTokens, t.Strides.Token}, {"head", l.Heads.Count, t.Strides.Head},
		{"dim", t.Dims.Count, t.Strides.Dim},
	}
	axes = slices.DeleteFunc(axes, func(a axis) bool { return a.count == 1 })
	slices.SortStableFunc(axes, func(a, b axis) int { return cmp.Compare(b.stride, a.stride) })
	return axes
}

// nested says that the elements of one axis reach into each other, or else how many bytes they take with the gaps
// between them.
func nested(axes []axis, elementSize uint64) (bytes uint64, err error) {
	bytes = elementSize
	for _, a := range slices.Backward(axes) {
		if a.stride < bytes {
			return 0, fmt.Errorf("axis %s has a stride of %d bytes, and its elements take %d", a.name, a.stride, bytes)
		}
		over, before := bits.Mul64(a.stride, a.count-1)
		sum, carry := bits.Add64(before, bytes, 0)
		if over != 0 || carry != 0 || sum > math.MaxInt64 {
			return 0, fmt.Errorf("axis %s: %d elements with a stride of %d bytes go beyond the end of the address space",
				a.name, a.count, a.stride)
		}
		bytes = sum
	}
	return bytes, nil
}

// extent is how many bytes checked axes take, with the gaps in them.
func extent(axes []axis, elementSize uint64) int64 {
	bytes := elementSize
	for _, a := range axes {
		bytes += a.stride * (a.count - 1)
	}
	return int64(bytes)
}

// checkBoxes says that two tensors have the same coordinates.
func (l *Layout) checkBoxes() error {
	for i := range l.Tensors {
		box := l.box(&l.Tensors[i])
		for j := range i {
			if both := box.common(l.box(&l.Tensors[j])); !both.empty() {
				return fmt.Errorf("tensors %d and %d both have %v", j, i, both)
			}
		}
	}
	return nil
}

// checkMemory says that elements of two tensors, or of two layers of one, share bytes.
func (l *Layout) checkMemory() error {
	type piece struct {
		tensor, layer int
		address, end  int64
		axes          []axis
	}
	var pieces []piece
	for i := range l.Tensors {
		t := &l.Tensors[i]
		axes := l.axes(t)
		for k, address := range t.Addresses {
			end := int64(address) + extent(axes, l.ElementSize)
			pieces = append(pieces, piece{i, int(t.FirstLayer) + k, int64(address), end, axes})
		}
	}
	slices.SortFunc(pieces, func(a, b piece) int { return cmp.Compare(a.address, b.address) })
	compare := comparison{elementSize: l.ElementSize, left: maxComparisons}
	for i := range pieces {
		for j := i + 1; j < len(pieces) && pieces[j].address < pieces[i].end; j++ {
			a, b := &pieces[i], &pieces[j]
			if err := compare.disjoint(b.address-a.address, a.axes, b.axes); err != nil {
				return fmt.Errorf("layer %d of tensor %d and layer %d of tensor %d: %w", a.layer, a.tensor, b.layer, b.tensor, err)
			}
		}
	}
	return nil
}

var (
	errShared  = errors.New("their elements share bytes")
	errUnknown = errors.New("they lie between each other's elements with different strides, and cannot be told apart")
	errTooMany = errors.New("too many tensors lie between each other's elements")
)

// comparison is the comparison of all tensors of a layout.
type comparison struct {
	elementSize uint64
	left        int // how many steps it may still take
}

// disjoint says that elements share bytes: those of axes a, and those of axes b that begin delta bytes later. At each
// level, at most two elements of b are near one of a.
func (c *comparison) disjoint(delta int64, a, b []axis) error {
	if c.left--; c.left < 0 {
		return errTooMany
	}
	if delta >= extent(a, c.elementSize) || -delta >= extent(b, c.elementSize) {
		return nil
	}
	if len(a) == 0 && len(b) == 0 {
		return errShared
	}
	if len(a) == 0 || len(b) == 0 || a[0].stride != b[0].stride {
		return errUnknown
	}
	stride := int64(a[0].stride)
	nearest := -delta / stride
	if delta > 0 && delta%stride != 0 {
		nearest-- // rounded down
	}
	for steps := nearest; steps <= nearest+1; steps++ { // of b against a
		if steps < -int64(a[0].count-1) || steps > int64(b[0].count-1) {
			continue
		}
		if err := c.disjoint(delta+steps*stride, a[1:], b[1:]); err != nil {
			return err
		}
	}
	return nil
}
