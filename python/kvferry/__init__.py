"""kvferry moves KV cache between the memory of different machines, over plain TCP.

This package carries the native library and loads it. Programs written for Mooncake import mooncake.engine, which comes
with it. Importing kvferry loads no native library and starts no thread.
"""

import _kvferry_import_hook  # noqa: F401 - mooncake.engine is kvferry's from now on
from kvferry._layouts import Layout, Place
from kvferry._library import LibraryError
from kvferry._plans import Moved, Plan, TransferError, plan

__version__ = "0.2.0"

__all__ = ["Layout", "LibraryError", "Moved", "Place", "Plan", "TransferError", "__version__", "plan"]
