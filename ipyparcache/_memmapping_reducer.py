"""The place where newer programs look for `has_shareable_memory`."""

from __future__ import annotations

from ipyparcache.engine.filebacked import has_shareable_memory

__all__ = ["has_shareable_memory"]
