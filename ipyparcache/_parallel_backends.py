"""The place where backends of others look for what they derive from."""

from __future__ import annotations

from ipyparcache.engine.backends.base import (
    AutoBatchingMixin,
    FallbackToBackend,
    LokyBackend,
    ParallelBackendBase,
    SequentialBackend,
    ThreadingBackend,
    inside_dask_worker,
)

__all__ = [
    "AutoBatchingMixin",
    "FallbackToBackend",
    "LokyBackend",
    "ParallelBackendBase",
    "SequentialBackend",
    "ThreadingBackend",
    "inside_dask_worker",
]


def __getattr__(name: str) -> object:
    if name == "MultiprocessingBackend":  # not where Python was built without what it needs
        from ipyparcache.engine.backends.multiprocess import MultiprocessingBackend

        return MultiprocessingBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
