"""kvferry moves KV cache between the memory of different machines, over plain TCP.

An Engine registers memory (Region), opens peers (Peer), and starts transfers (Transfer), which can be awaited:
docs/python.md has examples. Programs written for Mooncake import mooncake.engine, which comes with this package.
Importing kvferry loads no native library and starts no thread; the first engine or layout does.
"""

import _kvferry_import_hook  # noqa: F401 - mooncake.engine is kvferry's from now on
from kvferry._errors import (
    Cancelled,
    EngineClosed,
    EngineError,
    Error,
    PeerUnreachable,
    RangeRejected,
    RegionInUse,
    Revoked,
    TimedOut,
    TransferError,
)
from kvferry._inbox import Message
from kvferry._layouts import Layout, Place
from kvferry._library import LibraryError
from kvferry._native import Engine
from kvferry._offers import Offer, Offered
from kvferry._peers import Descriptor, Peer
from kvferry._plans import Moved, Plan, plan
from kvferry._ranges import Range
from kvferry._regions import Region, Slice
from kvferry._transfers import Progress, Transfer

__version__ = "0.2.0"

__all__ = [
    "Cancelled",
    "Descriptor",
    "Engine",
    "EngineClosed",
    "EngineError",
    "Error",
    "Layout",
    "LibraryError",
    "Message",
    "Moved",
    "Offer",
    "Offered",
    "Peer",
    "PeerUnreachable",
    "Place",
    "Plan",
    "Progress",
    "Range",
    "RangeRejected",
    "Region",
    "RegionInUse",
    "Revoked",
    "Slice",
    "TimedOut",
    "Transfer",
    "TransferError",
    "__version__",
    "plan",
]
