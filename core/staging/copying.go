package staging

import (
	"fmt"

	"kvferry/core/device"
)

// Copying says who chooses the way in which small blocks are copied. The zero value is ByDefault.
type Copying int

const (
	ByDefault  Copying = iota // the device's default, see device.Traits
	Measured                  // what a measurement on the device found fastest; the device's default until then
	firstFixed                // this and later ones: always the same device.Way
)

// AlwaysBy is Copying by one way, as far as the device and the blocks allow it.
func AlwaysBy(way device.Way) Copying { return firstFixed + Copying(way) }

// Fixed returns the way that AlwaysBy was given.
func (c Copying) Fixed() (way device.Way, fixed bool) {
	return device.Way(c - firstFixed), c >= firstFixed
}

func (c Copying) String() string {
	switch way, fixed := c.Fixed(); {
	case fixed:
		return way.String()
	case c == Measured:
		return "auto"
	}
	return "default"
}

// ParseCopying reads "auto", "default", or the name of a way.
func ParseCopying(text string) (Copying, error) {
	switch text {
	case "auto":
		return Measured, nil
	case "default":
		return ByDefault, nil
	}
	way, err := device.ParseWay(text)
	if err != nil {
		return ByDefault, fmt.Errorf("%w, auto, default", err)
	}
	return AlwaysBy(way), nil
}
