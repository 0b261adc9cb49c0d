"""Starting peers of each kind."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from . import venvs
from .peer import Peer, environment

numbers = itertools.count(1)


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it where everything must run: in CI, or with KVFERRY_REQUIRE_ALL=1."""
    if os.environ.get("CI") == "true" or os.environ.get("KVFERRY_REQUIRE_ALL") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


class Peers:
    """Starts peers, and ends them all at once: how one ends by itself is for the tests that look at that.

    `enter` is a command that runs each of them in place of itself, as in a network namespace.
    """

    def __init__(self, logs: Path, enter: Sequence[str] = ()) -> None:
        self._logs = logs
        self._enter = enter
        self._peers: list[Peer] = []

    def __call__(self, kind: str = "ours", **settings: str) -> Peer:
        """Start a peer without an engine: "ours" or a version of Mooncake, with environment variables `settings`."""
        label = f"peer {next(numbers)}, {kind}"
        log = self._logs / f"{label}.log"
        try:
            if kind == "ours":
                env = environment({**venvs.ours(), **settings}, ours=True)
                peer = Peer(label, sys.executable, env, log, enter=self._enter)
            else:
                python = venvs.mooncake(kind)
                env = environment({"MC_FORCE_TCP": "1", **venvs.mooncake_settings(kind), **settings}, ours=False)
                peer = Peer(label, python, env, log, enter=self._enter)
        except venvs.Unavailable as reason:
            unavailable(str(reason))
        self._peers.append(peer)
        return peer

    def close(self) -> None:
        for peer in self._peers:
            peer.kill()
