"""kvferry topology: the memory nodes and GPUs of this machine, in Mooncake's form."""

from __future__ import annotations

import argparse
import json

from kvferry._command import status
from kvferry._command.declaration import Command
from kvferry._command.output import Output
from kvferry._topology import topology


def run(arguments: argparse.Namespace, out: Output) -> int:
    """The command: print it."""
    text = topology()
    out.text(text)
    out.result(json.loads(text))
    return status.OK


COMMAND = Command(
    name="topology",
    help="print the memory nodes and GPUs of this machine",
    description="Print the memory nodes and GPUs of this machine as JSON, in the form of Mooncake's"
    " transfer_engine_topology_dump. The lists of RDMA devices are empty: kvferry uses none. If MC_CUSTOM_TOPO_JSON"
    " names a file, what is in it is printed.",
    run=run,
)
