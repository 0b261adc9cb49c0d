"""What all subcommands of kvferry have in common: help, exit statuses, --json, completion, the man page."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvferry._command import completion, main, manual, registered, status
from kvferry._command.declaration import GLOBAL, Command, CommandError, Example, option
from kvferry._command.output import Output
from support.venvs import REPOSITORY

NAMES = [command.name for command in registered.COMMANDS]


def broken(_: argparse.Namespace, out: Output) -> int:
    out.text("a line")
    raise CommandError("the disk is on fire")


def interrupted(_: argparse.Namespace, out: Output) -> int:
    raise KeyboardInterrupt


def shown(arguments: argparse.Namespace, out: Output) -> int:
    out.note("around")
    out.text("asked for")
    out.detail("detail")
    out.table(("name", "n"), [("a", 1), ("long name", 200)], right=[1])
    out.result({"given": arguments.value})
    return status.OK


PROBES = (
    Command("broken", "fail", "It fails.", broken),
    Command("interrupted", "end", "It ends.", interrupted),
    Command("shown", "show", "It shows.", shown, (option("--value", help="a value", default="none"),)),
)


def test_without_arguments_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: kvferry") and err == ""
    for command in registered.COMMANDS:
        assert command.help in out


def test_a_wrong_argument_is_a_usage_error_that_says_where_help_is(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["no-such-command"], ["demo", "--no-such-option"], ["demo", "--lay", "3"]):
        with pytest.raises(SystemExit) as ended:
            main.main(arguments)
        assert ended.value.code == status.USAGE
        assert "--help" in capsys.readouterr().err


def test_what_is_wrong_with_the_arguments_of_a_command_is_said_by_that_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, said in (
        (["ping", "a", "b"], "kvferry ping: unrecognized arguments: b; see kvferry ping --help"),
        (["info", "--no-such"], "kvferry info: unrecognized arguments: --no-such; see kvferry info --help"),
        (["--no-such"], "kvferry: unrecognized arguments: --no-such; see kvferry --help"),
        (["ls"], "kvferry ls: the following arguments are required: STORE; see kvferry ls --help"),
        (["rm"], "kvferry rm: the following arguments are required: STORE, NAME; see kvferry rm --help"),
    ):
        with pytest.raises(SystemExit) as ended:
            main.main(arguments)
        assert ended.value.code == status.USAGE
        assert capsys.readouterr().err.splitlines()[-1] == said


def use_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "COMMANDS", PROBES)


def test_a_failure_is_one_sentence_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_probes(monkeypatch)
    assert main.main(["broken"]) == status.FAILED
    assert capsys.readouterr() == ("a line\n", "kvferry broken failed: the disk is on fire\n")


def test_with_json_a_failure_is_also_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_probes(monkeypatch)
    assert main.main(["broken", "--json"]) == status.FAILED
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": err.strip()} == {"error": "kvferry broken failed: the disk is on fire"}


def test_ctrl_c_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use_probes(monkeypatch)
    assert main.main(["interrupted"]) == status.INTERRUPTED
    assert capsys.readouterr().err == "kvferry interrupted was interrupted\n"


@pytest.mark.parametrize("arguments", [["--json", "shown", "--value=7"], ["shown", "--value=7", "--json"]])
def test_json_may_stand_before_and_after_the_command_and_replaces_all_text(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_probes(monkeypatch)
    assert main.main(arguments) == status.OK
    assert json.loads(capsys.readouterr().out) == {"given": "7"}


def test_quiet_leaves_out_what_was_not_asked_for_and_verbose_adds_details(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_probes(monkeypatch)
    rows = ["a            1", "long name  200"]
    for arguments, lines in (
        (["shown"], ["around", "asked for", "name         n", *rows]),
        (["-q", "shown"], ["asked for", *rows]),
        (["shown", "--verbose"], ["around", "asked for", "detail", "name         n", *rows]),
    ):
        main.main(arguments)
        assert capsys.readouterr().out.splitlines() == lines


def test_output_that_nobody_reads_is_status_141_without_a_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "kvferry", "simulator"], stdout=closed, stderr=subprocess.PIPE, timeout=30
        )
    assert (done.returncode, done.stderr) == (status.NO_READER, b"")


def test_output_without_room_is_a_failure_in_one_sentence() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kvferry", "simulator"], stdout=full, stderr=subprocess.PIPE, timeout=30
        )
    why = b"kvferry: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (status.FAILED, why)


def test_a_command_may_have_no_standard_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)  # as Python has them where the descriptors are closed
    out = Output()
    assert not out.terminal
    out.text("a line")
    out.error("an error")


def test_what_is_unfinished_is_in_the_value_of_a_failure() -> None:
    stream = io.StringIO()
    out = Output(as_json=True, stream=stream, errors=io.StringIO())
    out.unfinished({"rows": [1]})
    out.error("the second row failed")
    assert json.loads(stream.getvalue()) == {"rows": [1], "error": "the second row failed"}


def test_no_subcommand_takes_the_name_of_a_global_option() -> None:
    taken = {name for declared in GLOBAL for name in declared.names} | {"-h", "--help"}
    for command in registered.COMMANDS:
        assert not taken & {name for declared in command.options for name in declared.names}, command.name
    assert len(set(NAMES)) == len(NAMES)


def completed(line: str, folder: Path) -> list[str]:
    """The words that bash offers for the end of a line."""
    script = completion.of_bash(registered.COMMANDS)
    words = line.split(" ")
    program = f"""{script}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
COMP_CWORD={len(words) - 1}
_kvferry
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-eu", "-c", program], cwd=folder, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.split()


def test_bash_completes_commands_options_choices_and_files(tmp_path: Path) -> None:
    (tmp_path / "secret.pem").touch()
    assert completed("kvferry dem", tmp_path) == ["demo"]
    assert set(completed("kvferry ", tmp_path)) >= {*NAMES, "--json", "--help"}
    assert completed("kvferry --json dem", tmp_path) == ["demo"]
    assert completed("kvferry demo --lay", tmp_path) == ["--layers"]
    assert completed("kvferry demo --decode g", tmp_path) == ["gpu"]
    assert completed("kvferry simulator c", tmp_path) == ["cuda"]
    assert completed("kvferry metadata-server --tls-cert s", tmp_path) == ["secret.pem"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_shells_script_has_every_command_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", shell]) == status.OK
    script = capsys.readouterr().out
    for command in registered.COMMANDS:
        assert command.name in script
        for declared in command.options:
            for name in declared.names if not declared.positional else ():
                in_fish = f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
                assert (in_fish if shell == "fish" else f"{name}[") in script


def test_the_man_page_has_every_command_option_and_exit_status() -> None:
    page = manual.page(main.DESCRIPTION, registered.COMMANDS)
    plain = page.replace("\\-", "-").replace("\\&", "")
    for command in registered.COMMANDS:
        assert f".SS kvferry {command.name}" in plain
        for declared in command.options:
            assert declared.positional or f"\\fB{declared.names[0]}\\fR" in plain
    for number, meaning in status.MEANINGS.items():
        assert f".B {number}\n{meaning}" in plain
    assert (REPOSITORY / "docs" / "kvferry.1").read_text() == page, "run `make generate`"


def test_text_of_an_option_that_troff_would_take_for_a_command_stays_text() -> None:
    odd = Command("odd", "odd", ".br is no command here", shown, examples=(Example("'x'", "it's \\odd"),))
    page = manual.page("A test.", [odd])
    assert "\n\\&.br is no command here\n" in page
    assert ".B \\&'x'\nIt's \\eodd." in page


def test_a_table_goes_to_the_given_stream() -> None:
    stream = io.StringIO()
    out = Output(stream=stream)
    out.table(("a",), [("1",)])
    assert stream.getvalue() == "a\n1\n" and not out.terminal


def test_control_characters_of_strangers_do_not_reach_the_terminal() -> None:
    stream, errors = io.StringIO(), io.StringIO()
    out = Output(stream=stream, errors=errors)
    out.text("one\x1b[2Jtwo\r\udc80\n\tthree")
    out.error("a\x07b")
    out.warning("c\x9bd")
    out.table(("name",), [("x\ny\t\x1b",)])
    assert stream.getvalue() == "one?[2Jtwo??\n\tthree\nname\nx?y??\n"
    assert errors.getvalue() == "a?b\nc?d\n"


@pytest.mark.parametrize("command", registered.COMMANDS, ids=lambda command: str(command.name))
def test_a_value_that_an_option_does_not_take_is_named_with_what_it_takes(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for declared in command.options:
        if "type" not in declared.settings:
            continue
        wrong = "?"
        with pytest.raises(SystemExit) as ended:
            main.main([command.name, *([] if declared.positional else [declared.names[0]]), wrong])
        assert ended.value.code == status.USAGE
        said = capsys.readouterr().err.splitlines()[-1]
        assert re.search(r": argument \S.*: '\?' is not (a|read|host|HOST)", said), said


def test_a_command_that_is_terminated_ends_as_by_ctrl_c_and_a_handler_of_the_program_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = []

    def run(arguments: argparse.Namespace, out: Output) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it was not interrupted")
        finally:
            cleaned.append(True)

    def handler(number: int, frame: object) -> None:
        cleaned.append(False)

    monkeypatch.setattr(main, "COMMANDS", (Command("waiting", "", "", run),))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert main.main(["waiting"]) == status.TERMINATED == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "kvferry waiting was terminated\n"
    assert cleaned == [True] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(AssertionError):
            main.main(["waiting"])
        assert cleaned == [True, False, True] and signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
