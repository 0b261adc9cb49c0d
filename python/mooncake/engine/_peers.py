"""The calls of TransferEngine that ask peers, or take their messages."""

from __future__ import annotations

from kvferry._bindings import KVFERRY_ERR_TIMED_OUT
from kvferry._ffi import TextError
from kvferry._waiting import given_up
from mooncake.engine._base import Calls
from mooncake.engine._refusals import NOT_INITIALIZED, Refused, fails_as, refused
from mooncake.engine._types import TransferNotify

UNREACHABLE = -102  # results of send_probe()
UNKNOWN_NAME = -200


class PeerCalls(Calls):
    """The calls. A peer is named host:port, or as its metadata store has it."""

    @fails_as(0)
    def get_first_buffer_address(self, segment_name: str) -> int:
        """The address at which the first buffer that a peer registered begins; 0 while there is none. The engine's own
        name works."""
        engine = self._initialized()
        code, address = engine.first_buffer(segment_name, self._timeout)
        if code == KVFERRY_ERR_TIMED_OUT:
            raise Refused(f"{segment_name}: {given_up(self._timeout)}: the peer has not answered")
        if code != 0:
            raise Refused(f"{segment_name}: {engine.last_error()}")
        return address

    @fails_as(-1)
    def send_probe(self, peer_server_name: str) -> int:
        """0 when the peer answers, -102 when it is unreachable or refuses, -200 for an unknown name."""
        engine = self._initialized()
        try:
            code = engine.probe(peer_server_name, self._timeout)
        except TextError as e:
            raise Refused(str(e), UNKNOWN_NAME) from None
        return UNREACHABLE if code == KVFERRY_ERR_TIMED_OUT else code

    def warmup_efa_segment(self, segment_name: str) -> int:
        """0: kvferry has no EFA to warm up."""
        return 0

    def get_notifies(self) -> list[TransferNotify]:
        """Take the messages that were received, oldest first."""
        engine = self._engine
        if engine is None:
            refused("get_notifies", NOT_INITIALIZED)
            return []
        return [TransferNotify(name, text) for name, text in engine.notifies()]
