"""The joblib-shaped front; its names are found here, too, as programs import them from `joblib.parallel`."""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = frozenset(
    {
        "BACKENDS",
        "EXTERNAL_BACKENDS",
        "Parallel",
        "ParallelBackendBase",
        "cpu_count",
        "delayed",
        "effective_n_jobs",
        "parallel_backend",
        "parallel_config",
        "register_parallel_backend",
    }
)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("ipyparcache.parallel.front"), name)
