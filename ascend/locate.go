package ascend

// #include "acl.h"
import "C"

import (
	"strconv"

	"kvferry/core/status"
	"kvferry/internal/driver"
)

// memory is AscendCL's answer about an address.
type memory struct{ kind, index int }

// Ask asks AscendCL about the memory at addr, on a thread of our own. Some releases answer only on a thread with a current
// device. Ask then sets the named device, or the first one, on that thread, which ends afterwards.
func (l *library) Ask(addr uintptr, named int) (m driver.Memory, err error) {
	if l.acl.aclrtPointerGetAttributes == nil {
		return nil, status.Errorf(status.NotImplemented, "this release of CANN has no aclrtPointerGetAttributes")
	}
	driver.OnOwnThread(func() {
		m, err = l.attributes(addr)
		if driver.FailedWith(err, C.ACL_NO_CONTEXT) {
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

// On returns the NPU that the memory is on, if it is on one. Memory that host and device both can access counts as the
// host's, which needs no copy of it. For types of memory that only later releases have, On trusts the owner's location.
func (m memory) On(named int) (index int, found bool, err error) {
	switch m.kind {
	case C.ACL_MEMORY_DEVICE:
		return m.index, true, nil
	case C.ACL_MEMORY_HOST, C.ACL_MEMORY_UNREGISTERED, C.ACL_MEMORY_MANAGED, C.ACL_MEMORY_HOST_NUMA:
		return 0, false, nil
	}
	if named == driver.Unnamed {
		return 0, false, status.Errorf(status.NotSupportedTransport,
			"AscendCL says that it is of type %d, which is unknown here: name its device, as %s:0 for the first", m.kind, Name)
	}
	return named, true, nil
}

// String describes the memory for logs.
func (m memory) String() string {
	if m.kind == C.ACL_MEMORY_DEVICE {
		return npus.NameOf(m.index)
	}
	return "not an NPU's (type " + strconv.Itoa(m.kind) + ")"
}
