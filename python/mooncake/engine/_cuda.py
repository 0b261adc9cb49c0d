"""The calls of TransferEngine that move bytes in the order of a CUDA stream.

A build of Mooncake has them or lacks them, and programs ask with hasattr(). Here they are there where CUDA is.
"""

from __future__ import annotations

from typing import Any, Callable

from kvferry import gpu
from mooncake.engine._arguments import READ, WRITE, Ranges, many_ranges_on_stream, one_range_on_stream
from mooncake.engine._base import Calls


class OnlyWithCuda:
    """A method that its class has where there is a CUDA driver with a GPU."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = self.__wrapped__ = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: object, owner: type) -> Any:
        if not gpu.available():
            raise AttributeError(f"{owner.__name__}.{self._function.__name__}: there is no CUDA driver with a GPU here")
        return self._function.__get__(instance, owner)


class StreamTransfers(Calls):
    """The calls. RuntimeError says why nothing was queued."""

    @OnlyWithCuda
    @one_range_on_stream
    def transfer_write_on_cuda(self, target: str, ranges: Ranges, stream: int) -> None:
        """Write length bytes to the peer's address in the order of a stream: see batch_transfer_write_on_cuda()."""
        self._order(target, ranges, stream, WRITE)

    @OnlyWithCuda
    @one_range_on_stream
    def transfer_read_on_cuda(self, target: str, ranges: Ranges, stream: int) -> None:
        """Read length bytes into buffer in the order of a stream: see batch_transfer_write_on_cuda()."""
        self._order(target, ranges, stream, READ)

    @OnlyWithCuda
    @many_ranges_on_stream
    def batch_transfer_write_on_cuda(self, target: str, ranges: Ranges, stream: int) -> None:
        """Write blocks in the order of a stream: after the work that is in it by now, and before work that comes later.

        stream_ptr is a cudaStream_t or CUstream, 0 the default stream of the calling thread's current context. The call
        does not wait for the transfer; it waits for a peer that is not open yet. The memory must stay until the stream
        has passed the transfer. The stream goes on also when the transfer fails; the log has the reason, and the
        engine's next call of this kind raises it. RuntimeError says why nothing was queued.
        """
        self._order(target, ranges, stream, WRITE)

    @OnlyWithCuda
    @many_ranges_on_stream
    def batch_transfer_read_on_cuda(self, target: str, ranges: Ranges, stream: int) -> None:
        """Read blocks in the order of a stream: see batch_transfer_write_on_cuda()."""
        self._order(target, ranges, stream, READ)

    def _order(self, target: str, ranges: Ranges, stream: int, opcode: int) -> None:
        engine, segment = self._open(target)
        code = engine.order("cuda", stream, opcode, segment, *ranges)
        if code != 0:
            raise self._failure(engine, code)
