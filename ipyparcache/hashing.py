"""The place where programs written for joblib look for `hash`."""

from __future__ import annotations

from ipyparcache.digest.joblibhash import hash

__all__ = ["hash"]
