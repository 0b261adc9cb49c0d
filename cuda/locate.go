package cuda

// #include "cuda.h"
import "C"

import (
	"kvferry/core/status"
	"kvferry/internal/driver"
)

// memory is CUDA's answer about an address.
type memory struct {
	kind    int // 0 where CUDA does not know it
	managed bool
	index   int
}

// Ask asks CUDA about the memory at addr. That needs no context, and makes none.
func (l *library) Ask(addr uintptr, _ int) (driver.Memory, error) {
	var found C.struct_cuda_attributes
	code := C.kvferry_cuda_attributes(l.cuda, C.uintptr_t(addr), &found)
	if err := l.check(code, status.Context, "cuPointerGetAttributes(%#x)", addr); err != nil {
		return nil, err
	}
	return memory{kind: int(found.memory_type), managed: found.managed != 0, index: int(found.device)}, nil
}

// On returns the GPU that the memory is on, if it is on one: it was allocated there, or is mapped from there. Managed
// memory counts as its GPU's, wherever its pages are now: copies can access it, and system calls of the host may not.
// Page-locked memory is the host's.
func (m memory) On(named int) (index int, found bool, err error) {
	switch {
	case m.managed && m.index < 0:
		return max(named, 0), true, nil
	case m.managed, m.kind == C.CUDA_MEMORY_DEVICE:
		return m.index, true, nil
	}
	return 0, false, nil
}

// String describes the memory for logs.
func (m memory) String() string {
	switch index, found, _ := m.On(driver.Unnamed); {
	case found:
		return gpus.NameOf(index)
	case m.kind == C.CUDA_MEMORY_HOST:
		return "page-locked memory of the host"
	}
	return "not known to CUDA"
}
