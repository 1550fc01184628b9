"""The places where programs look for what joblib brings along from other projects."""

from __future__ import annotations

import importlib


def __getattr__(name: str) -> object:
    if name in ("cloudpickle", "loky"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
