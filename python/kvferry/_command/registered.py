"""The subcommands, in the order of the help."""

from __future__ import annotations

from kvferry import demo, metadata_server, simulator
from kvferry._command import bench, completion, doctor, info, members, ping, serve, top, topology, trace
from kvferry._command.declaration import Command

COMMANDS: tuple[Command, ...] = (
    info.COMMAND,
    doctor.COMMAND,
    demo.COMMAND,
    serve.COMMAND,
    bench.COMMAND,
    ping.COMMAND,
    members.LIST,
    members.REMOVE,
    top.COMMAND,
    topology.COMMAND,
    metadata_server.COMMAND,
    simulator.COMMAND,
    trace.COMMAND,
    completion.COMMAND,
)
