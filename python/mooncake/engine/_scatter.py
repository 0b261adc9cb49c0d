"""Scatter transfers: the calls that start them, and the tickets that say how they are."""

from __future__ import annotations

import enum
from typing import SupportsIndex

from kvferry._arrays import blocks
from kvferry._ffi import Integers, u64
from kvferry._scatter import ScatterTransfer
from kvferry._waiting import given_up
from mooncake.engine._arguments import NO_BATCH, READ, WRITE, Lists, blocks_of_regions, time_for
from mooncake.engine._base import Calls
from mooncake.engine._refusals import Refused, refused

Regions = tuple[Integers, Integers, Integers, Integers]  # addresses and capacities, local and remote
Offsets = tuple[Lists, Lists, Lists]  # of the blocks, local and remote, and their lengths


class ScatterTransferCompletionStatus(enum.IntEnum):
    """What a scatter transfer has come to."""

    COMPLETED = 0
    FAILED_DRAINED = -1  # it failed, and nothing touches its memory any more
    COMPLETION_UNKNOWN = -2  # it is under way: its memory may be touched

    __str__ = enum.Enum.__str__


class ScatterTransferTicket:
    """A scatter transfer that was started. Only TransferEngine makes tickets. Any thread may call a ticket.

    A ticket keeps the transfer alive, and the engine with it. An initialize() that replaces the engine gives the
    transfer up. When the last reference to a ticket goes while the transfer is under way, Python waits there until the
    transfer has ended, or gives it up at its time limit, which is that of a blocking call.
    """

    _transfer: ScatterTransfer

    def __init__(self) -> None:
        raise TypeError("mooncake.engine.ScatterTransferTicket: No constructor defined!")

    @property
    def status(self) -> ScatterTransferCompletionStatus:
        """What the transfer has come to by now."""
        return ScatterTransferCompletionStatus(self._transfer.status())

    @property
    def drained(self) -> bool:
        """Whether nothing touches the memory of the transfer any more: it has completed, or failed."""
        return self.status is not ScatterTransferCompletionStatus.COMPLETION_UNKNOWN

    def drain(self, timeout_ms: SupportsIndex, /) -> ScatterTransferCompletionStatus:
        """Wait for up to timeout_ms milliseconds until the transfer has ended; its status then. After that time the
        transfer goes on. Ctrl-C ends the wait, not the transfer."""
        return ScatterTransferCompletionStatus(self._transfer.wait(u64(timeout_ms, "timeout_ms") / 1000))


class ScatterTransfers(Calls):
    """The calls of TransferEngine that start scatter transfers.

    There are k regions on each side: region j begins at local_base_addresses[j] here and at remote_base_addresses[j] at
    the peer, and has that capacity in bytes. Block i of region j is lengths[j][i] bytes between local_base_addresses[j]
    + local_offsets[j][i] and remote_base_addresses[j] + remote_offsets[j][i].

    A block outside a capacity, lists of different lengths, and a peer that cannot be reached raise nothing: the ticket
    says FAILED_DRAINED, and the log why. A number that is no integer from 0 to 2^64-1 is a TypeError.
    """

    @blocks_of_regions
    def submit_scatter_write(self, endpoint: str, regions: Regions, offsets: Offsets) -> ScatterTransferTicket:
        """Start writing blocks of regions. Returns at once; a peer that is not open yet is opened in the background."""
        return _ticket(self._start(endpoint, WRITE, regions, offsets))

    @blocks_of_regions
    def submit_scatter_read(self, endpoint: str, regions: Regions, offsets: Offsets) -> ScatterTransferTicket:
        """Start reading blocks of regions: see submit_scatter_write()."""
        return _ticket(self._start(endpoint, READ, regions, offsets))

    @blocks_of_regions
    def scatter_transfer_sync_write_with_ticket(
        self, endpoint: str, regions: Regions, offsets: Offsets
    ) -> ScatterTransferTicket:
        """submit_scatter_write(), and wait until the transfer has ended. At its time limit it is given up. Its ticket
        says COMPLETION_UNKNOWN only where something is stuck that may still use the memory."""
        return _ticket(_finished(endpoint, self._start(endpoint, WRITE, regions, offsets)))

    @blocks_of_regions
    def scatter_transfer_sync_read_with_ticket(
        self, endpoint: str, regions: Regions, offsets: Offsets
    ) -> ScatterTransferTicket:
        """submit_scatter_read(), and wait: see scatter_transfer_sync_write_with_ticket()."""
        return _ticket(_finished(endpoint, self._start(endpoint, READ, regions, offsets)))

    def _start(self, endpoint: str, opcode: int, regions: Regions, offsets: Offsets) -> ScatterTransfer:
        """Start a transfer. One that cannot be started has failed, and the log says why."""
        if not isinstance(endpoint, str):
            raise TypeError(f"endpoint must be a str, not {type(endpoint).__name__}")
        try:
            described = blocks(*regions, *offsets)
            engine = self._initialized()
            batch = engine.submit_scatter(opcode, endpoint, described)
            if batch == NO_BATCH:
                raise Refused(engine.last_error())
        except (Refused, ValueError) as e:
            refused(_about(endpoint), e)
            return ScatterTransfer(None, NO_BATCH, 0)
        return ScatterTransfer(engine, batch, self._timeout + time_for(described.lengths)())


def _finished(endpoint: str, transfer: ScatterTransfer) -> ScatterTransfer:
    """The transfer, when it has ended or was given up."""
    if not transfer.finish():
        refused(_about(endpoint), f"{given_up(transfer.timeout)}: {transfer.progress}")
    return transfer


def _ticket(transfer: ScatterTransfer) -> ScatterTransferTicket:
    ticket = ScatterTransferTicket.__new__(ScatterTransferTicket)
    ticket._transfer = transfer
    return ticket


def _about(endpoint: str) -> str:
    return f"scatter transfer with {endpoint}"
