"""Engines in a network namespace with several hosts, and files with secrets."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import network
from support.peers import Peers


@pytest.fixture(scope="module")
def namespace() -> Iterator[network.Network]:
    with network.made() as made:
        yield made


@pytest.fixture
def start_in(namespace: network.Network, tmp_path: Path) -> Iterator[Peers]:
    """Start peers in the namespace that live as long as the test."""
    peers = Peers(tmp_path, namespace.enter)
    yield peers
    peers.close()


@pytest.fixture
def secret(tmp_path: Path) -> str:
    """A file with a secret."""
    file = tmp_path / "secret"
    file.touch(0o600)
    file.write_text(secrets.token_hex(32) + "\n")
    return str(file)
