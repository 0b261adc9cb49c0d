"""kvferry demo: KV cache moves between two processes over TCP, and every byte of it is checked.

It does so for three pairs of places: host to host, NPU to host and NPU to NPU; or, with a GPU, host to host, NPU to GPU
and GPU to GPU. For each pair:

1. decode, a process of its own, makes a KV cache, registers it, and sends its name and the cache's address to prefill;
2. prefill, the process that the user started, fills a cache of the same shape and takes a digest of each layer;
3. prefill writes all blocks to slots that are scattered over decode's cache, a layer's blocks in a batch;
4. decode takes the digests of its cache, and prefill compares them with its own;
5. prefill wipes its cache, reads all blocks back, and compares again.

Between an NPU and another kind of memory the cache changes its layout on the way: prefill has blocks of 128 tokens with
the heads first, as vllm-ascend may have it, and decode blocks of 16 with the tokens first. A batch is a layer there.

nodes.py has the two processes, cache.py the cache, layouts.py its two layouts, devices.py the NPUs and GPUs.
"""

from __future__ import annotations

import argparse
import os
import socket
from typing import Any

from kvferry import __version__
from kvferry._bindings import OPCODE_READ, OPCODE_WRITE
from kvferry._command import status
from kvferry._command.declaration import Command, CommandError, option
from kvferry._command.output import Output
from kvferry._options import positive
from kvferry._places import size_text
from kvferry.demo.cache import Cache, Shape, compare
from kvferry.demo.devices import DemoError, Devices, find_gpus, find_npus
from kvferry.demo.layouts import CHANGE, LongCache
from kvferry.demo.nodes import DecodeProcess, Prefill, ReshapingPrefill


def run(arguments: argparse.Namespace, out: Output) -> int:
    """The command. It has failed when a byte was wrong or something failed."""
    shape = Shape(arguments.layers, arguments.blocks, arguments.block_size)
    check_address(arguments.host)
    os.environ["KVFERRY_SAME_HOST"] = "0"  # the processes stand for two hosts, and use TCP
    decode = DecodeProcess(arguments.host, shape)
    try:
        npus, gpus = find_npus(), find_gpus(arguments.decode)
        decode.start()
        move_and_check(arguments.host, shape, arguments.batch or 2 * shape.blocks, npus, gpus, decode, out)
    except DemoError as e:
        raise CommandError(str(e)) from e
    except KeyboardInterrupt:
        decode.kill()
        raise
    finally:
        decode.end()
    return status.OK


def check_address(host: str) -> None:
    """CommandError where a host is no address of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as s:
            s.bind(address)
    except (OSError, UnicodeError) as e:
        raise CommandError(f"--host {host} is no address of this machine: {e}") from e


def move_and_check(
    host: str, shape: Shape, batch: int, npus: Devices, gpus: Devices | None, decode: DecodeProcess, out: Output
) -> None:
    """Move the cache between all pairs of places, check it, and print what is done."""
    out.text(f"kvferry {__version__}: a KV cache of {shape}, {size_text(shape.bytes)} in all")
    for devices in filter(None, (npus, gpus)):
        out.text(devices.told)
    out.text(f"prefill (process {os.getpid()}) writes it over TCP to decode (process {decode.pid}), {batch} scattered")
    out.text("blocks at a time, and reads it back\n")
    out.text("prefill   decode             bytes   blocks  batches    time    GB/s  p50/batch  p99/batch")
    rows = []
    for here, there in pairs(npus, gpus):
        prefill = make_prefill(host, shape, here, there, batch, decode)
        written, read = both_ways(prefill, decode)
        prefill.close()
        changed = isinstance(prefill, ReshapingPrefill)
        mark = " *" if changed else ""
        out.text(table_row(f"{here:6} -> {there:6} write", shape, written) + mark)
        out.text(table_row(f"{here:6} <- {there:6} read ", shape, read) + mark)
        rows += [row(here, there, "write", written, changed), row(here, there, "read", read, changed)]
    if any(one["change_of_layout"] for one in rows):
        out.text(f"* with a change of layout: {CHANGE}")
    out.text(f"\nevery byte checked: the digests of all {shape.layers} layers agree on both sides, in each row")
    out.result({"version": __version__, "bytes": shape.bytes, "checked": True, "transfers": rows})


def pairs(npus: Devices, gpus: Devices | None) -> list[tuple[str, str]]:
    """The places of prefill's and decode's caches, one pair after the other."""
    if gpus is None:
        return [("host", "host"), (npus.place(), "host"), (npus.place(), npus.place(other=True))]
    return [("host", "host"), (npus.place(), gpus.place()), (gpus.place(), gpus.place(other=True))]


def make_prefill(host: str, shape: Shape, here: str, there: str, batch: int, decode: DecodeProcess) -> Prefill:
    """Prefill with a cache here and decode with one there. Their layouts differ if the kinds of memory do."""
    peer = decode.serve(there)
    if peer.tokens is None or here.split(":")[0] == there.split(":")[0]:
        return Prefill(host, Cache(shape, here), here, batch, peer)
    return ReshapingPrefill(host, LongCache(shape, here), here, peer, peer.tokens)


def both_ways(prefill: Prefill, decode: DecodeProcess) -> tuple[list[float], list[float]]:
    """Steps 2 to 5: the seconds of each batch, written and read."""
    prefill.cache.fill()
    sent = prefill.cache.digests()
    written = prefill.move(OPCODE_WRITE)
    compare(sent, decode.digests(), "decode has")
    prefill.cache.wipe()
    read = prefill.move(OPCODE_READ)
    compare(sent, prefill.cache.digests(), "prefill has read back")
    return written, read


def row(here: str, there: str, direction: str, times: list[float], changed: bool) -> dict[str, Any]:
    """What --json has of a transfer."""
    return {
        "prefill": here,
        "decode": there,
        "direction": direction,
        "change_of_layout": CHANGE if changed else None,
        "batch_seconds": times,
    }


def table_row(name: str, shape: Shape, times: list[float]) -> str:
    """A line of the table: how many bytes, how fast, and how long a batch took."""
    total, ordered = sum(times), sorted(times)
    p50, p99 = (ordered[int(p * (len(ordered) - 1))] * 1e3 for p in (0.5, 0.99))
    blocks = shape.layers * 2 * shape.blocks
    return (
        f"{name} {shape.bytes:11,} {blocks:8,} {len(times):8,} {total:5.2f} s {shape.bytes / total / 1e9:7.2f}"
        f" {p50:7.2f} ms {p99:7.2f} ms"
    )


COMMAND = Command(
    name="demo",
    help="move KV cache between two processes and check every byte",
    description="Move a KV cache between two processes of this machine over TCP, between host memory, NPUs and GPUs,"
    " and check every byte. Devices that the machine does not have are simulated.",
    run=run,
    options=(
        option("--layers", type=positive, default=32, metavar="N", help="layers of the model (%(default)s)"),
        option(
            "--blocks", type=positive, default=256, metavar="N", help="blocks of each layer's K and V (%(default)s)"
        ),
        option("--block-size", type=positive, default="16K", metavar="BYTES", help="bytes of a block (%(default)s)"),
        option("--batch", type=positive, metavar="N", help="blocks in one call (those of a layer)"),
        option(
            "--decode",
            choices=("auto", "gpu", "host"),
            default="auto",
            help="where decode keeps its cache. auto: in a GPU where the machine has one, otherwise in host and NPU"
            " memory; gpu: in a GPU, which is simulated where the machine has none; host: in host and NPU memory"
            " (%(default)s)",
        ),
        option("--host", default="127.0.0.1", help="address of this machine to use (%(default)s)"),
    ),
)
