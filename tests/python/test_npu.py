"""kvferry.npu, on simulated NPUs."""

from __future__ import annotations

import pytest

from kvferry import simulator
from kvferry.npu import AscendCL, NpuError


def test_an_error_has_the_librarys_reason() -> None:
    acl = AscendCL(simulator.library())
    with pytest.raises(NpuError, match=r"^aclrtSetDevice of .* failed with 107001: .*99"):
        acl.allocate(1, device=99)
    with pytest.raises(NpuError, match=r"^aclrtMalloc of .* failed with \d+: "):
        acl.allocate(1 << 62)


def test_a_missing_library_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_ASCENDCL", "/nonexistent.so")
    with pytest.raises(NpuError, match=r"^AscendCL cannot be opened: /nonexistent\.so: "):
        AscendCL()


def test_another_library_is_not_taken_for_ascendcl() -> None:
    with pytest.raises(NpuError, match=r"^libc\.so\.6 is not AscendCL: .*aclInit"):
        AscendCL("libc.so.6")
