"""Scatter transfers: the calls that start them, and the tickets that tell of them."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import SupportsIndex

from kvferry import _log
from kvferry._arrays import Blocks, blocks
from kvferry._ffi import Integers, u64
from kvferry._scatter import ScatterTransfer
from mooncake.engine._arrays import READ, WRITE

Lists = Iterable[Integers]


class ScatterTransferCompletionStatus(enum.IntEnum):
    """What a scatter transfer has come to."""

    COMPLETED = 0
    FAILED_DRAINED = -1  # it failed, and nothing touches its memory any more
    COMPLETION_UNKNOWN = -2  # it is under way: its memory may be touched

    __str__ = enum.Enum.__str__


class ScatterTransferTicket:
    """A scatter transfer that was started. TransferEngine makes tickets; nobody else does.

    It keeps the transfer alive, and the engine with it, but for an initialize() that replaces the engine: what is under
    way is given up then. When the last reference to a ticket goes while the transfer is under way, that waits for its
    end, and gives it up when its time is over, which is that of a synchronous call. Any thread may call a ticket.
    """

    _transfer: ScatterTransfer

    def __init__(self) -> None:
        raise TypeError("mooncake.engine.ScatterTransferTicket: No constructor defined!")

    @property
    def status(self) -> ScatterTransferCompletionStatus:
        """How things stand now."""
        return ScatterTransferCompletionStatus(self._transfer.status())

    @property
    def drained(self) -> bool:
        """Whether nothing touches the memory of the transfer any more: it has completed, or failed."""
        return self.status is not ScatterTransferCompletionStatus.COMPLETION_UNKNOWN

    def drain(self, timeout_ms: SupportsIndex, /) -> ScatterTransferCompletionStatus:
        """Wait until the transfer has ended, for up to so many milliseconds; its status then. One that goes on after
        that is left alone. Ctrl-C ends the wait, not the transfer."""
        return ScatterTransferCompletionStatus(self._transfer.wait(u64(timeout_ms, "timeout_ms") / 1000))


class ScatterTransfers:
    """The calls of TransferEngine that start scatter transfers.

    There are k regions on each side: region j begins at local_base_addresses[j] here and at remote_base_addresses[j] at
    the peer, and has that capacity in bytes. Block i of region j is lengths[j][i] bytes between local_base_addresses[j]
    + local_offsets[j][i] and remote_base_addresses[j] + remote_offsets[j][i].

    A block outside a capacity, lists of different lengths, and a peer that cannot be reached do not raise: the ticket
    says FAILED_DRAINED, and the log why. What is no integer from 0 to 2^64-1 is a TypeError.
    """

    def submit_scatter_write(
        self,
        endpoint: str,
        local_base_addresses: Integers,
        local_capacities: Integers,
        remote_base_addresses: Integers,
        remote_capacities: Integers,
        local_offsets: Lists,
        remote_offsets: Lists,
        lengths: Lists,
    ) -> ScatterTransferTicket:
        """Start writing blocks of regions. Returns at once; a peer that is not open yet is opened in the background."""
        bases = local_base_addresses, local_capacities, remote_base_addresses, remote_capacities
        return self._scatter(endpoint, WRITE, bases, (local_offsets, remote_offsets, lengths), wait=False)

    def submit_scatter_read(
        self,
        endpoint: str,
        local_base_addresses: Integers,
        local_capacities: Integers,
        remote_base_addresses: Integers,
        remote_capacities: Integers,
        local_offsets: Lists,
        remote_offsets: Lists,
        lengths: Lists,
    ) -> ScatterTransferTicket:
        """Start reading blocks of regions: see submit_scatter_write()."""
        bases = local_base_addresses, local_capacities, remote_base_addresses, remote_capacities
        return self._scatter(endpoint, READ, bases, (local_offsets, remote_offsets, lengths), wait=False)

    def scatter_transfer_sync_write_with_ticket(
        self,
        endpoint: str,
        local_base_addresses: Integers,
        local_capacities: Integers,
        remote_base_addresses: Integers,
        remote_capacities: Integers,
        local_offsets: Lists,
        remote_offsets: Lists,
        lengths: Lists,
    ) -> ScatterTransferTicket:
        """submit_scatter_write(), and wait until the transfer has ended. When its time is over it is given up. Its
        ticket says COMPLETION_UNKNOWN only where something is stuck that may use the memory still."""
        bases = local_base_addresses, local_capacities, remote_base_addresses, remote_capacities
        return self._scatter(endpoint, WRITE, bases, (local_offsets, remote_offsets, lengths), wait=True)

    def scatter_transfer_sync_read_with_ticket(
        self,
        endpoint: str,
        local_base_addresses: Integers,
        local_capacities: Integers,
        remote_base_addresses: Integers,
        remote_capacities: Integers,
        local_offsets: Lists,
        remote_offsets: Lists,
        lengths: Lists,
    ) -> ScatterTransferTicket:
        """submit_scatter_read(), and wait: see scatter_transfer_sync_write_with_ticket()."""
        bases = local_base_addresses, local_capacities, remote_base_addresses, remote_capacities
        return self._scatter(endpoint, READ, bases, (local_offsets, remote_offsets, lengths), wait=True)

    def _scatter(
        self,
        endpoint: str,
        opcode: int,
        bases: tuple[Integers, Integers, Integers, Integers],
        lists: tuple[Lists, Lists, Lists],
        wait: bool,
    ) -> ScatterTransferTicket:
        if not isinstance(endpoint, str):
            raise TypeError(f"endpoint must be a str, not {type(endpoint).__name__}")
        try:
            transfer = self._start_scatter(endpoint, blocks(*bases, *lists), opcode)
        except ValueError as e:
            _log.warning("scatter transfer with %s: %s", endpoint, e)
            transfer = ScatterTransfer(None, 0, 0)
        if wait and not transfer.finish():
            _log.warning(
                "scatter transfer with %s: given up after %g s (MC_TRANSFER_TIMEOUT, and 1 s for each GiB)",
                endpoint,
                transfer.timeout,
            )
        ticket = ScatterTransferTicket.__new__(ScatterTransferTicket)
        ticket._transfer = transfer
        return ticket

    def _start_scatter(self, endpoint: str, described: Blocks, opcode: int) -> ScatterTransfer:
        """What TransferEngine has for these: start a transfer. ValueError for an endpoint that is no name."""
        raise NotImplementedError
