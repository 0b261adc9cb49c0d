package metadata

import (
	"math"
	"reflect"
	"strconv"
	"time"

	"kvferry/core/status"
)

// Entries of a central store have a version, as Mooncake's have since 0.3.14: microseconds since 1970 on the clock of the
// engine that wrote them. Of two values of one key the one with the higher version is the later one. An engine gives each
// value a higher version than its last one and than those of a predecessor under its name, even if its clock is behind. A
// reader keeps the value that it has when it reads an older one, or a different one of the same version. A value without a
// version, as older engines write it and as P2P mode has it, is taken as it is.

// version is the JSON form of a version. Anything but such a number counts as absent.
type version uint64

// UnmarshalJSON implements json.Unmarshaler.
func (v *version) UnmarshalJSON(encoded []byte) error {
	n, err := strconv.ParseUint(string(encoded), 10, 64)
	if err != nil {
		n = 0
	}
	*v = version(n)
	return nil
}

// nextVersion is the version of a value that follows one of version latest.
func nextVersion(latest uint64) uint64 {
	if latest == math.MaxUint64 {
		return latest
	}
	return max(uint64(time.Now().UnixMicro()), latest+1)
}

// CheckVersion returns nil if the descriptor may take the place of another one that was fetched before, of the same
// segment: it is later, or the same, or one of them has no version.
func (d *Descriptor) CheckVersion(before *Descriptor) error {
	switch {
	case before == nil || d.Version == 0 || before.Version == 0 || d.Version > before.Version:
		return nil
	case d.Version < before.Version:
		return status.Errorf(status.Metadata, "the descriptor of segment %q is stale: its metadata_version %d is older than %d, "+
			"which was seen before; a successor under the same name needs a clock that is not behind", d.Name, d.Version, before.Version)
	case !d.equal(before):
		return status.Errorf(status.Metadata, "the descriptor of segment %q conflicts with another one of the same "+
			"metadata_version %d: two engines may have published it", d.Name, d.Version)
	}
	return nil
}

func (d *Descriptor) equal(other *Descriptor) bool {
	a, b := *d, *other
	a.extents, b.extents = nil, nil
	return reflect.DeepEqual(a, b)
}
