"""What the command prints on terminals, and elsewhere."""

from __future__ import annotations

import io

import pytest

from kvferry._command import findings, main
from kvferry._command.output import Output, harmless

FOUND = "the interface that leads to the peer has an MTU of 1500 bytes, and all other machines have one of 9000"
PATH = "/opt/venv/lib/python3.11/site-packages/kvferry/_lib/libtransfer_engine.so"


class Stream(io.StringIO):
    """An output that says whether it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def printed(terminal: bool) -> list[str]:
    stream = Stream(terminal)
    out = Output(stream=stream)
    findings.show([findings.warning("mtu", FOUND, f"{FOUND}.")], out)
    out.table(("what", "is"), [("library", PATH), ("GPUs", FOUND)])
    return stream.getvalue().splitlines()


def test_a_terminal_breaks_texts_between_words_and_leaves_paths_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = printed(terminal=True)
    assert all(len(line) <= 60 for line in lines if PATH not in line)
    assert f"library  {PATH}" in lines
    finding, table = lines[: lines.index("what     is")], lines[lines.index("what     is") :]
    assert finding[0].startswith("warning  mtu: the interface") and all(line[:9] == " " * 9 for line in finding[1:])
    assert " ".join(line[9:] for line in finding) == f"mtu: {FOUND} {FOUND}."
    assert " ".join(line[9:] for line in table[2:]) == FOUND and all(line[:9] == " " * 9 for line in table[3:])


def test_a_narrow_terminal_and_a_pipe_have_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    whole = [f"warning  mtu: {FOUND}", f"{'':9}{FOUND}.", "what     is", f"library  {PATH}", f"GPUs     {FOUND}"]
    assert printed(terminal=True) == printed(terminal=False) == whole


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_dumb_terminal_is_not_written_over(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    out = Output(stream=Stream(True))
    assert out.terminal and not out.rewritable
    monkeypatch.setenv("TERM", "xterm")
    assert out.rewritable and not Output(stream=Stream(False)).rewritable


def test_urls_are_printed_without_user_and_password() -> None:
    for as_json in (False, True):
        stream, errors = Stream(False), Stream(False)
        out = Output(as_json=as_json, stream=stream, errors=errors)
        out.text("--- http://me:se/cret@10.0.0.2:1 ---")
        out.result({"peer": "http://me:se/cret@10.0.0.2:1", "answers": 0})
        out.error("http://me:se/cret@10.0.0.2:1 cannot be asked")
        assert "cret" not in stream.getvalue() + errors.getvalue()
        assert "http://10.0.0.2:1 cannot be asked" in errors.getvalue()


def test_a_mistake_in_an_argument_is_told_without_user_and_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["top", "http://me:secret@10.0.0.2:9400/metrics"])
    errors = capsys.readouterr().err
    assert "'http://10.0.0.2:9400/metrics' is not HOST:PORT" in errors and "secret" not in errors


def test_a_text_of_many_urls_takes_no_longer_than_another() -> None:
    text = "://" * 1_000_000  # a stranger may have written it; to search each for the end of a password takes hours
    assert harmless(text) == text
