"""kvferry completion SHELL: a script by which a shell completes the command's subcommands and options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Callable

from kvferry._command import status
from kvferry._command.declaration import GLOBAL, Command, Example, Option, option
from kvferry._command.output import Output

FILES, FOLDERS = "FILE", "DIR"  # the metavars of options that are completed with names of files
SHELLS = ("bash", "zsh", "fish")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """The command: print the script."""
    script = SCRIPTS[arguments.shell](arguments.commands)
    out.text(script)
    out.result({"shell": arguments.shell, "script": script})
    return status.OK


def of_bash(commands: Sequence[Command]) -> str:
    """A script for bash: for each subcommand the words that can follow, by the word before."""
    cases = "\n".join(_bash_case(command) for command in commands)
    words = " ".join([*(command.name for command in commands), *_names(GLOBAL), "--help", "--version"])
    return f"""\
_kvferry() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command= given
    for given in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $given in -*) ;; *) command=$given; break ;; esac
    done
    local words="{words}"
    case $command in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -F _kvferry kvferry"""


def _bash_case(command: Command) -> str:
    lines = [f"    {command.name})", "        case $before in"]
    for declared in command.options:
        pattern = "|".join(declared.names)
        action = _value(
            declared,
            choices=lambda words: f'COMPREPLY=($(compgen -W "{words}" -- "$word"))',
            files='COMPREPLY=($(compgen -f -- "$word"))',
            folders='COMPREPLY=($(compgen -d -- "$word"))',
            other="COMPREPLY=()",
        )
        if action and not declared.positional:
            lines.append(f"        {pattern}) {action}; return ;;")
    words = " ".join([*_choices(command), *_names(command.options), *_names(GLOBAL), "--help"])
    return "\n".join([*lines, "        esac", f'        words="{words}"', "        ;;"])


def of_zsh(commands: Sequence[Command]) -> str:
    """A script for zsh, by its function _arguments."""
    names = "\n".join(f"        {_zsh_quoted(f'{command.name}:{command.help}')}" for command in commands)
    cases = "\n".join(_zsh_case(command) for command in commands)
    options = " ".join(_zsh_option(declared) for declared in GLOBAL)
    return f"""\
#compdef kvferry
_kvferry() {{
    local state line
    local -a commands=(
{names}
    )
    _arguments -C {options} --help --version '1:command:->command' '*::argument:->argument'
    case $state in
    command) _describe command commands ;;
    argument)
        case $words[1] in
{cases}
        esac
        ;;
    esac
}}
compdef _kvferry kvferry"""


def _zsh_case(command: Command) -> str:
    declared = " ".join(_zsh_option(each) for each in (*command.options, *GLOBAL))
    return f"        {command.name}) _arguments --help {declared} ;;"


def _zsh_option(declared: Option) -> str:
    action = _value(declared, choices="({})".format, files="_files", folders="_files -/", other=" ")
    name = declared.names[-1]
    if declared.positional:
        place = "*" if declared.settings.get("nargs") in ("*", "+") else ""
        return _zsh_quoted(f"{place}:{name}:{action}")
    text = f"[{_plain_help(declared).translate(ZSH_ESCAPES)}]"
    value = f":{declared.settings.get('metavar') or name.lstrip('-')}:{action}" if action else ""
    return " ".join(_zsh_quoted(f"{each}{text}{value}") for each in declared.names)


ZSH_ESCAPES = {ord(character): f"\\{character}" for character in "[]:"}


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def of_fish(commands: Sequence[Command]) -> str:
    """A script for fish."""
    lines = ["complete -c kvferry -f"]
    for command in commands:
        lines.append(f"complete -c kvferry -n __fish_use_subcommand -a {command.name} -d {_fish_quoted(command.help)}")
        chosen = f"-n '__fish_seen_subcommand_from {command.name}'"
        if words := " ".join(_choices(command)):
            lines.append(f"complete -c kvferry {chosen} -a '{words}'")
        lines += [
            f"complete -c kvferry {chosen} {_fish_option(each)}" for each in command.options if not each.positional
        ]
    lines += [f"complete -c kvferry {_fish_option(declared)}" for declared in GLOBAL]
    return "\n".join(lines)


def _fish_option(declared: Option) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in declared.names)
    value = _value(
        declared,
        choices="-x -a '{}'".format,
        files="-r -F",
        folders="-x -a '(__fish_complete_directories)'",
        other="-x",
    )
    return " ".join(filter(None, (names, value, f"-d {_fish_quoted(_plain_help(declared))}")))


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _value(declared: Option, choices: Callable[[str], str], files: str, folders: str, other: str) -> str:
    """What a shell does to complete the value of an option; "" for an option that has none."""
    if "choices" in declared.settings:
        return choices(" ".join(declared.settings["choices"]))
    if declared.settings.get("action", "store") not in ("store", "append"):
        return ""
    return {FILES: files, FOLDERS: folders}.get(declared.settings.get("metavar", ""), other)


def _names(options: Sequence[Option]) -> Iterator[str]:
    """The names of options."""
    for declared in options:
        if not declared.positional:
            yield from declared.names


def _choices(command: Command) -> Iterator[str]:
    """The words that arguments of a subcommand can be."""
    for declared in command.options:
        if declared.positional:
            yield from declared.settings.get("choices", ())


def _plain_help(declared: Option) -> str:
    """The first clause of the help, without argparse's parameters."""
    return declared.help.split(" (%(", 1)[0].split(". ", 1)[0].split("; ", 1)[0].replace("%%", "%")


SCRIPTS = {"bash": of_bash, "zsh": of_zsh, "fish": of_fish}

COMMAND = Command(
    name="completion",
    help="print a script by which a shell completes this command",
    description="Print a script by which bash, zsh or fish completes the commands and options of kvferry.",
    run=run,
    options=(option("shell", choices=SHELLS, help="the shell"),),
    examples=(
        Example('eval "$(kvferry completion bash)"', "in ~/.bashrc"),
        Example('eval "$(kvferry completion zsh)"', "in ~/.zshrc, after compinit"),
        Example("kvferry completion fish | source", "in ~/.config/fish/config.fish"),
    ),
)
