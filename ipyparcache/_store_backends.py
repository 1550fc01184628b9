"""The place where store backends of others look for what they derive from."""

from __future__ import annotations

from ipyparcache.memorized import CacheWarning
from ipyparcache.results import CacheItem as CacheItemInfo
from ipyparcache.storage.store import StoreBackendBase

__all__ = ["CacheItemInfo", "CacheWarning", "StoreBackendBase", "StoreBackendMixin"]


class StoreBackendMixin:
    """Kept for backends that derive from it: what joblib's does for them is done by the store above them."""
