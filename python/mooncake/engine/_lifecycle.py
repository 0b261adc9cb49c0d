"""The calls of TransferEngine that begin and end an engine, and tell of it."""

from __future__ import annotations

import threading

from kvferry import _log
from kvferry._engine import Engine
from kvferry._errors import EngineError
from kvferry._topology import topology
from kvferry.stats import Stats
from mooncake.engine import _notices
from mooncake.engine._base import Calls
from mooncake.engine._refusals import fails_as

P2P = "P2PHANDSHAKE"
USUAL_PROTOCOL = "rdma"  # what vLLM and SGLang ask for by default
SHORTEST_START = 5.0  # seconds that initialize() may take, however short ASCEND_TRANSFER_TIMEOUT is

_replaced_protocols: set[str] = set()  # that the log has named


class LifeCycle(Calls):
    """The calls. Threads may replace the engine and use it at the same time."""

    _initializing: threading.Lock

    def initialize(self, local_hostname: str, metadata_server: str, protocol: str, device_name: str | None) -> int:
        """Start the engine under a name; 0 or -1.

        metadata_server is P2PHANDSHAKE or a connection string, by default of etcd. protocol "tcp" and "ascend" mean
        these transports, and any other one TCP; "ascend" fails where AscendCL, the library of the NPUs, is not found.
        device_name is not needed. A second call replaces the engine: its transfers are ended, it forgets its peers, and
        only managed buffers are registered again.
        """
        return self.initialize_ext(local_hostname, metadata_server, protocol, device_name, "etcd")

    def initialize_ext(
        self,
        local_hostname: str,
        metadata_server: str,
        protocol: str,
        device_name: str | None,
        metadata_type: str,
    ) -> int:
        """initialize(), with a metadata_type that is the scheme of a connection string without one."""
        if not all(isinstance(a, str) for a in (local_hostname, metadata_server, protocol, metadata_type)):
            raise TypeError("local_hostname, metadata_server, protocol and metadata_type must be str")
        if protocol == "xgmi":
            _log.error("initialize: the protocol 'xgmi' is not supported")
            return -1
        if metadata_server != P2P and "://" not in metadata_server:
            metadata_server = f"{metadata_type}://{metadata_server}"
        with self._initializing:
            return self._replace_engine(local_hostname, metadata_server, _transport(protocol))

    def _replace_engine(self, name: str, metadata: str, transport: str | None) -> int:
        previous, self._engine = self._engine, None
        if previous is not None:
            previous.close()
        try:
            engine = Engine(name, metadata, transport, self._memory, max(self._timeout, SHORTEST_START))
        except (EngineError, ValueError) as e:
            _log.error("initialize: the engine %r cannot be made: %s", name, e)  # metadata may have a password in it
            return -1
        if self._memory.register_all(engine.register) != 0:
            _log.error("initialize: managed buffers cannot be registered again: %s", engine.last_error())
            engine.close()
            return -1
        self._engine = engine
        return 0

    @fails_as(-1)
    def get_rpc_port(self) -> int:
        """The port on which peers find this engine; -1 before initialize()."""
        return self._initialized().rpc_port()

    @fails_as(None)
    def stats(self) -> Stats | None:
        """What the engine has done since initialize(), and does now. None before initialize().

        kvferry.stats has the type, and docs/operations.md what the entries mean. Mooncake has no such call.
        """
        return self._initialized().stats()

    def get_engine(self) -> Engine | None:
        """The inner engine, or None before initialize(). It ends with this object, or with the next initialize().

        It is not an object of Mooncake's: mooncake.store takes None in its place, and makes an engine of its own.
        """
        _notices.handing_out()
        return self._engine

    def get_engine_ptr(self) -> int:
        """The inner engine's handle in kvferry's C interface, or 0. It is not a pointer to an object of Mooncake's, and
        must not be given to native code that uses it as one."""
        engine = self._engine
        return 0 if engine is None else engine.handle

    def get_local_topology(self, device_name: str | None = None) -> str:
        """JSON: memory node, or GPU that this process may use -> [preferred RDMA devices, available RDMA devices]. The
        lists are empty, unless the file that MC_CUSTOM_TOPO_JSON names says otherwise. Needs no initialize()."""
        return topology()


def _transport(protocol: str) -> str | None:
    """The transport that the native library is to install; None leaves the choice to the library."""
    if protocol in ("tcp", "ascend"):
        return protocol
    if protocol not in _replaced_protocols:
        _replaced_protocols.add(protocol)
        log = _log.info if protocol == USUAL_PROTOCOL else _log.warning
        log("initialize: kvferry has no protocol %r and uses TCP instead", protocol)
    return None
