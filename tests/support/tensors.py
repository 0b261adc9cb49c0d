"""PyTorch's tensors as memory of a peer, and what else a peer is asked about PyTorch."""

from __future__ import annotations

import importlib
from typing import Any

KIND = "torch"  # in places: "torch:0" on a GPU, "torch:pinned" in page-locked host memory
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"  # by which PyTorch's allocator is told what to do
EXPANDABLE = "expandable_segments:True"


def torch() -> Any:
    return importlib.import_module("torch")


class TensorRegion:
    """A tensor of bytes."""

    def __init__(self, size: int, device: str) -> None:
        """device is the number of a GPU, or "pinned"."""
        where: dict[str, Any] = {"pin_memory": True} if device == "pinned" else {"device": f"cuda:{device}"}
        self.size = size
        self.tensor = torch().empty(size, dtype=torch().uint8, **where)
        self.address: int = self.tensor.data_ptr()

    def read(self, offset: int, length: int) -> bytes:
        data: bytes = self.tensor[offset : offset + length].cpu().numpy().tobytes()
        return data

    def write(self, offset: int, data: bytes) -> None:
        if data:
            source = torch().frombuffer(bytearray(data), dtype=torch().uint8)
            self.tensor[offset : offset + len(data)].copy_(source)
            torch().cuda.synchronize()

    def free(self) -> None:
        del self.tensor
        torch().cuda.empty_cache()
