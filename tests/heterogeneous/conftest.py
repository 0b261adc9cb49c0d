"""What the tests of this folder share."""

from __future__ import annotations

from support.releases import older, seed

__all__ = ["older", "seed"]  # fixtures
