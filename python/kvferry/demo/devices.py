"""Devices for the demo: those of the machine, or simulated ones."""

from __future__ import annotations

import os
from typing import NamedTuple

from kvferry import simulator
from kvferry._device import DeviceError, Runtime
from kvferry._library import LibraryError
from kvferry._places import KINDS, Kind


class DemoError(Exception):
    """The demo cannot go on; the text is a sentence."""


class NoDeviceError(DemoError):
    """The machine has no device of a kind."""


class Devices(NamedTuple):
    """Devices of a kind, NPUs or GPUs, that this process and those that it starts use."""

    location: str  # "npu" or "cuda"
    number: int
    simulated: bool
    told: str  # a sentence about them, for the user

    @staticmethod
    def of(runtime: Runtime, why: str = "") -> Devices:
        """The devices of a library. why is the reason for simulated ones."""
        number, kind = runtime.devices(), KINDS[runtime.location].name
        if runtime.simulated:
            told = f"the {kind} is simulated{f': {why}' if why else f', by {runtime.path}'}"
        else:
            told = f"the {kind} is real, one of {number}, by way of {runtime.path}"
        return Devices(runtime.location, number, runtime.simulated, told)

    def place(self, other: bool = False) -> str:
        """One of them; with other, a second one where there are two."""
        return f"{self.location}:{min(int(other), self.number - 1)}"


def find_npus() -> Devices:
    """NPUs, simulated ones where the machine has none. DemoError says why there are neither."""
    return _find("npu", simulate=True)


def find_gpus(decode: str) -> Devices | None:
    """The GPUs for decode's cache; None where the cache is to be elsewhere.

    "host" takes no GPU. "auto" takes the machine's, if it has any. "gpu" takes simulated ones where it has none.
    DemoError says why there are none to take.
    """
    if decode == "host":
        return None
    try:
        return _find("cuda", simulate=decode == "gpu")
    except NoDeviceError:
        return None


def _find(location: str, simulate: bool) -> Devices:
    """Devices of the library that the variable of their kind names, or of the machine. Where the machine has none, and
    simulate is set, simulated ones: the variable is then set to their library."""
    kind = KINDS[location]
    try:
        if os.environ.get(kind.variable) or (absent := _why_none(kind)) is None:
            return Devices.of(kind.runtime())
        if not simulate:
            raise NoDeviceError(absent)
        os.environ[kind.variable] = simulator.library(location)
        return Devices.of(kind.runtime(), absent)
    except (DeviceError, LibraryError) as e:
        raise DemoError(str(e)) from e


def _why_none(kind: Kind) -> str | None:
    """Why the machine has no such device; None where it has one."""
    try:
        runtime = kind.runtime()
        return None if runtime.devices() else f"{runtime.title} finds no {kind.name}"
    except DeviceError as e:
        return str(e)
