"""The subcommands, in the order of the help."""

from __future__ import annotations

from kvferry import demo, metadata_server, simulator
from kvferry._command import completion, info
from kvferry._command.declaration import Command

COMMANDS: tuple[Command, ...] = (
    info.COMMAND,
    demo.COMMAND,
    metadata_server.COMMAND,
    simulator.COMMAND,
    completion.COMMAND,
)
