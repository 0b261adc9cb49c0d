package ascend

// #include "acl.h"
import "C"

import (
	"fmt"
	"strconv"
	"strings"

	"kvferry/core/status"

	"go.uber.org/zap"
)

// Where memory is is found out like this:
//
//  1. the location that its owner gave is read: "npu:1" names a device, anything else names none;
//  2. AscendCL is opened where a device is named, which must be there, or where it is present anyway. Where it is not, no
//     memory is an NPU's;
//  3. AscendCL is asked, on a thread of our own. Where no device is named it is not initialised for that: an application
//     that has not done so yet has no NPU memory, and may want to do it in its own way;
//  4. what it says counts, and a location that says otherwise is logged. Where it cannot say, the location is believed.

// unnamed stands for the device of a location that names none.
const unnamed = -1

// Locate tells which NPU has the memory at addr. Memory that both sides may access is not counted as an NPU's: the host
// needs no copy of it.
func (r *Runtime) Locate(addr uintptr, location string) (index int, found bool, err error) {
	named, err := readLocation(location)
	if err != nil {
		return 0, false, err
	}
	l, err := r.openFor(named)
	if l == nil || err != nil {
		return 0, false, err
	}
	m, err := l.ask(addr, named)
	if err != nil {
		r.log.Debug("AscendCL does not say where memory is", address(addr), zap.String("location", location), zap.Error(err))
		return max(named, 0), named != unnamed, nil
	}
	index, found, err = m.device(named)
	if err != nil {
		return 0, false, status.Errorf(status.NotSupportedTransport, "memory at %#x: %w", addr, err)
	}
	if named != unnamed && (!found || index != named) {
		r.log.Warn("memory is not where it is said to be", address(addr), zap.String("said", location), zap.Stringer("is", m))
	}
	return index, found, nil
}

// readLocation returns the number of the NPU that a location names.
func readLocation(location string) (int, error) {
	number, ok := strings.CutPrefix(location, Name)
	if !ok {
		return unnamed, nil
	}
	index, err := strconv.ParseUint(strings.TrimPrefix(number, ":"), 10, 31)
	if err != nil || !strings.HasPrefix(number, ":") {
		return 0, status.Errorf(status.InvalidArgument, "location %q is malformed: an NPU's is %s:0, %s:1 and so on", location, Name, Name)
	}
	return int(index), nil
}

// openFor returns AscendCL for memory that is said to be on a device; nil where it is not, and AscendCL is not present.
func (r *Runtime) openFor(named int) (*library, error) {
	if named == unnamed {
		return r.present(), nil
	}
	l, err := r.open()
	if err != nil {
		return nil, fmt.Errorf("memory on %s: %w", nameOf(named), err)
	}
	return l, l.expect(named)
}

// memory is what AscendCL says of an address.
type memory struct{ kind, index int }

// ask has AscendCL say what memory at addr is. Releases that do so for a thread with a current device only are asked
// again, with the device that was named, or the first one, made current on a thread that then ends.
func (l *library) ask(addr uintptr, named int) (memory, error) {
	if l.acl.aclrtPointerGetAttributes == nil {
		return memory{}, status.Errorf(status.NotImplemented, "this release of CANN has no aclrtPointerGetAttributes")
	}
	var m memory
	var err error
	onOwnThread(func() {
		m, err = l.attributes(addr)
		if failedWith(err, C.ACL_NO_CONTEXT) {
			m, err = l.attributesOn(max(named, 0), addr)
		}
	})
	return m, err
}

func (l *library) attributes(addr uintptr) (memory, error) {
	var found C.struct_acl_attributes
	code := C.kvferry_acl_attributes(l.acl, C.uintptr_t(addr), &found)
	if err := l.check(code, status.Context, "aclrtPointerGetAttributes(%#x)", addr); err != nil {
		return memory{}, err
	}
	return memory{kind: int(found.location._type), index: int(found.location.id)}, nil
}

func (l *library) attributesOn(index int, addr uintptr) (memory, error) {
	own := &npu{library: l, index: index}
	if err := own.Bind(); err != nil {
		return memory{}, err
	}
	m, err := l.attributes(addr)
	if unbound := own.Unbind(); err == nil {
		err = unbound
	}
	return m, err
}

// device returns the NPU that the memory is on, if it is on one. Kinds of memory that only later releases have are
// believed to be where their owner says.
func (m memory) device(named int) (index int, found bool, err error) {
	switch m.kind {
	case C.ACL_MEMORY_DEVICE:
		return m.index, true, nil
	case C.ACL_MEMORY_HOST, C.ACL_MEMORY_UNREGISTERED, C.ACL_MEMORY_MANAGED, C.ACL_MEMORY_HOST_NUMA:
		return 0, false, nil
	}
	if named == unnamed {
		return 0, false, status.Errorf(status.NotSupportedTransport,
			"AscendCL says that it is of type %d, which is unknown here: name its device, as %s:0 for the first", m.kind, Name)
	}
	return named, true, nil
}

// String is the memory for logs.
func (m memory) String() string {
	if m.kind == C.ACL_MEMORY_DEVICE {
		return nameOf(m.index)
	}
	return "not an NPU's (type " + strconv.Itoa(m.kind) + ")"
}

func address(addr uintptr) zap.Field {
	return zap.String("address", "0x"+strconv.FormatUint(uint64(addr), 16))
}
