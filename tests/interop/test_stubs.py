"""The list that the stubs of mooncake.engine are compared with is what Mooncake's wheel has in it."""

from __future__ import annotations

from pathlib import Path

from support import stubs, venvs
from support.peers import unavailable

LIST = Path(stubs.__file__).with_name(f"mooncake-{venvs.FOR_CUDA}.txt")


def test_the_list_of_mooncakes_names_parameters_and_defaults_is_that_of_its_wheel() -> None:
    try:
        home = venvs.mooncake(venvs.FOR_CUDA).parents[1]
    except venvs.Unavailable as reason:
        unavailable(str(reason))
    (theirs,) = home.glob("lib/python*/site-packages/mooncake/engine.pyi")
    assert stubs.declarations(theirs) == LIST.read_text().splitlines()
