"""The wheels that the tests of this folder install."""

from __future__ import annotations

import pytest

from support import venvs
from support.peers import unavailable

from .environments import Wheels, made


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    try:
        return made(tmp_path_factory.mktemp("wheels"))
    except venvs.Unavailable as reason:
        unavailable(str(reason))
