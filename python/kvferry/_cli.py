"""The kvferry command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import kvferry
from kvferry import demo, metadata_server, simulator


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="kvferry", description="Move KV cache between machines over TCP.")
    parser.add_argument("--version", action="version", version=f"kvferry {kvferry.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo.add_command(commands)
    metadata_server.add_command(commands)
    simulator.add_command(commands)
    chosen = parser.parse_args(arguments)
    status: int = chosen.run(chosen)
    return status
