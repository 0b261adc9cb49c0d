// Package ascend is the memory of Ascend NPUs, by way of AscendCL: libascendcl.so of CANN, opened at run time.
package ascend

// #cgo CFLAGS: -std=c99
import "C"

import (
	"kvferry/internal/driver"

	"go.uber.org/zap"
)

// Name is what the locations of NPU memory begin with.
const Name = "npu"

// npus has the variables of CANN's own set_env.sh.
var npus = driver.Kind{
	Name:     Name,
	Device:   "NPU",
	Library:  "AscendCL",
	File:     "libascendcl.so",
	Variable: "KVFERRY_ASCENDCL",
	Homes:    []string{"ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"},
	Use:      use,
}

// New returns the runtime of a library file, "" for the one that CANN has installed: where the loader finds
// libascendcl.so, or in lib64 of $ASCEND_TOOLKIT_HOME or of $ASCEND_HOME_PATH. Nothing is opened yet.
func New(file string, log *zap.Logger) *driver.Runtime { return driver.New(&npus, file, log) }
