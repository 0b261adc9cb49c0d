"""The base of the groups of calls that make up TransferEngine."""

from __future__ import annotations

from kvferry._bindings import KVFERRY_ERR_TIMED_OUT
from kvferry._engine import Engine
from kvferry._memory import ManagedMemory
from kvferry._waiting import ExtraTime, given_up, no_time
from mooncake.engine._refusals import NOT_INITIALIZED, Refused


class Calls:
    """A group of calls."""

    _engine: Engine | None  # None before initialize()
    _memory: ManagedMemory
    _timeout: float  # the time limit of a call, in seconds, without the time for its bytes

    def _initialized(self) -> Engine:
        """The engine. Refused before initialize()."""
        engine = self._engine
        if engine is None:
            raise Refused(NOT_INITIALIZED)
        return engine

    def _open(self, target: str, extra: ExtraTime = no_time) -> tuple[Engine, int]:
        """The engine, and the id of a peer's segment, within the time limit plus extra(). Refused says why not."""
        engine = self._engine or self._initialized()
        segment = engine.segment(target, self._timeout, extra)
        if segment < 0:
            raise self._failure(engine, segment, extra)
        return engine, segment

    def _failure(self, engine: Engine, code: int, extra: ExtraTime = no_time) -> Refused:
        """Why a call of this thread failed with a code, as an exception. Its time limit had extra() more."""
        reason = engine.last_error()
        if code == KVFERRY_ERR_TIMED_OUT:
            reason = f"{given_up(self._timeout + extra())}: {reason}"
        return Refused(reason)


def checked(engine: Engine, code: int) -> int:
    """0. Refused, with the code as its value, for a negative one."""
    if code != 0:
        raise Refused(engine.last_error(), code)
    return 0
