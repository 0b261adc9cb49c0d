"""kvferry moves KV cache between the memory of different machines, over plain TCP.

This package carries the native library and loads it. Programs written for Mooncake import mooncake.engine, which comes
with it. Importing kvferry loads no native library and starts no thread.
"""

import _kvferry_import_hook  # noqa: F401 - mooncake.engine is kvferry's from now on
from kvferry._library import LibraryError

__version__ = "0.2.0"

__all__ = ["LibraryError", "__version__"]
