"""Where the Go runtime would end the process as the library is loaded, the package raises an error."""

from __future__ import annotations

import pytest

from support.inprocess import run_python

REFUSED = """
from kvferry._library import LibraryError
from mooncake.engine import TransferEngine
try:
    TransferEngine()
except LibraryError as e:
    print(e, file=sys.stderr)
else:
    raise AssertionError
"""


@pytest.mark.parametrize("left", [1, 2, 3, 4, 5])
def test_a_process_with_few_descriptors_gets_an_error_and_can_try_again(left: int) -> None:
    done = run_python(f"""
import json, resource
from pathlib import Path
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
in_use = len(os.listdir("/proc/self/fd")) - 1
import kvferry._library, mooncake.engine
resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + {left}, hard))
{REFUSED}
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
works()
""")
    assert done.returncode == 0, done.stderr
    assert "raise RLIMIT_NOFILE (ulimit -n)" in done.stderr


@pytest.mark.parametrize("limit", ["junk", "512 MiB", "1GB", "-1", "9999999999TiB"])
def test_a_memory_limit_that_go_does_not_understand_is_an_error(limit: str) -> None:
    done = run_python(REFUSED, GOMEMLIMIT=limit)
    assert done.returncode == 0, done.stderr
    assert f"GOMEMLIMIT={limit!r}" in done.stderr


@pytest.mark.parametrize("limit", ["", "off", "1073741824", "512MiB", "1TiB"])
def test_a_memory_limit_that_go_understands_is_left_to_it(limit: str) -> None:
    done = run_python("works()", GOMEMLIMIT=limit)
    assert done.returncode == 0, done.stderr


def test_more_processors_than_go_has_threads_for_are_an_error() -> None:
    done = run_python(REFUSED, GOMAXPROCS="100000")
    assert done.returncode == 0, done.stderr
    assert "GOMAXPROCS=100000" in done.stderr


@pytest.mark.parametrize("setting", ["cgocheck=2", "fips140=x", "http2client=0,sbrk=1"])
def test_debug_settings_for_which_go_would_end_the_process_are_an_error(setting: str) -> None:
    done = run_python(REFUSED, GODEBUG=setting)
    assert done.returncode == 0, done.stderr
    assert f"{setting.split(',')[-1]} in the environment's GODEBUG" in done.stderr


def test_other_debug_settings_are_left_to_go() -> None:
    done = run_python("works()", GODEBUG="cgocheck=2,x,=,cgocheck=1,fips140=off,nonsense=5")
    assert done.returncode == 0, done.stderr
