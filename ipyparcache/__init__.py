"""Cached cells, parallel loops and a joblib-shaped API; every public name is resolved on first use."""

from __future__ import annotations

__version__ = "0.1.0"
