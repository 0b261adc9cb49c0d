"""kvferry info."""

from __future__ import annotations

import json
from typing import Any

import pytest

import kvferry
from kvferry import simulator
from kvferry._command.main import main


def info(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["info", *options]) == 0
    return capsys.readouterr().out


def info_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(info(capsys, "--json"))


def test_a_bug_report_has_versions_the_library_and_the_devices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVFERRY_ASCENDCL", simulator.library("npu"))
    found = info_json(capsys)
    assert found["software"]["kvferry"] == found["software"]["library_version"] == kvferry.__version__
    assert found["software"]["library"].endswith(".so") and found["software"]["engine_is_kvferry"]
    assert found["devices"][0]["kind"] == "npu" and found["devices"][0]["simulated"]
    text = info(capsys)
    for words in (kvferry.__version__, "simulated, by", "mooncake.engine", "glibc"):
        assert words in text


def test_settings_of_the_environment_are_shown_and_with_verbose_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MC_RETRY_CNT", "3")
    text = info(capsys)
    assert any(line.split()[:3] == ["MC_RETRY_CNT", "3", "environment"] for line in text.splitlines())
    assert "MC_SLICE_TIMEOUT" not in text
    assert "MC_SLICE_TIMEOUT" in info(capsys, "--verbose")


def test_values_without_effect_and_unknown_names_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MC_RETRY_CNT", "lots")
    monkeypatch.setenv("KVFERRY_LISTN", "::")
    monkeypatch.setenv("MC_RETRY_COUNT", "1")
    monkeypatch.setenv("MC_GID_INDEX", "3")
    text = info(capsys)
    assert "MC_RETRY_CNT is ignored: " in text
    assert "KVFERRY_LISTN is no setting of kvferry and has no effect: did you mean KVFERRY_LISTEN?" in text
    assert "MC_RETRY_COUNT is not read by kvferry: did you mean MC_RETRY_CNT?" in text
    assert "MC_GID_INDEX is not read by kvferry\n" in text


def test_a_secret_is_never_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("MC_METADATA_HTTP_TOKEN", "MC_REDIS_PASSWORD", "KVFERRY_ETCD_PASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    for options in ((), ("--verbose",), ("--json",)):
        text = info(capsys, *options)
        assert "hunter2" not in text and "***" in text


def test_without_a_library_the_rest_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kvferry import _library

    monkeypatch.setattr(_library, "_loaded", None)
    monkeypatch.setenv("KVFERRY_LIBRARY", "/nonexistent")
    text = info(capsys)
    assert "KVFERRY_LIBRARY names /nonexistent, which is no file" in text and "kernel" in text
