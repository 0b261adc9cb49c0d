// Package cuda is the memory of NVIDIA GPUs, by way of the CUDA driver API: libcuda.so.1, opened at run time.
package cuda

// #cgo CFLAGS: -std=c99
import "C"

import (
	"kvferry/internal/driver"

	"go.uber.org/zap"
)

// Name is what the locations of GPU memory begin with.
const Name = "cuda"

var gpus = driver.Kind{
	Name:     Name,
	Device:   "GPU",
	Library:  "the CUDA driver",
	File:     "libcuda.so.1",
	Variable: "KVFERRY_CUDA",
	Source:   "NVIDIA's driver",
	Use:      use,
}

// New returns the runtime of a library file, "" for the libcuda.so.1 that the loader finds. Nothing is opened yet.
func New(file string, log *zap.Logger) *driver.Runtime { return driver.New(&gpus, file, log) }
