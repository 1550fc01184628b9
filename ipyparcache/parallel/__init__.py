"""The joblib-shaped front; its names are found here, too, as programs import them from `joblib.parallel`."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

_HOMES = {
    "AutoBatchingMixin": "ipyparcache.engine.backends.base",
    "BACKENDS": "ipyparcache.engine.backends.base",
    "BatchCompletionCallBack": "ipyparcache.parallel.hooks",
    "BatchedCalls": "ipyparcache.parallel.protocol",
    "EXTERNAL_BACKENDS": "ipyparcache.engine.backends.base",
    "FallbackToBackend": "ipyparcache.engine.backends.base",
    "LokyBackend": "ipyparcache.engine.backends.base",
    "MultiprocessingBackend": "ipyparcache.engine.backends.multiprocess",
    "Parallel": "ipyparcache.parallel.front",
    "ParallelBackendBase": "ipyparcache.engine.backends.base",
    "SequentialBackend": "ipyparcache.engine.backends.base",
    "ThreadingBackend": "ipyparcache.engine.backends.base",
    "VALID_BACKEND_CONSTRAINTS": "ipyparcache.parallel.config",
    "VALID_BACKEND_HINTS": "ipyparcache.parallel.config",
    "cpu_count": "ipyparcache.engine.cpus",
    "delayed": "ipyparcache.parallel.tasks",
    "effective_n_jobs": "ipyparcache.parallel.config",
    "get_active_backend": "ipyparcache.parallel.config",
    "parallel_backend": "ipyparcache.parallel.config",
    "parallel_config": "ipyparcache.parallel.config",
    "register_parallel_backend": "ipyparcache.engine.backends.base",
}


def _multiprocessing() -> ModuleType | None:
    """The module as joblib's users know it from here: None where there are no processes."""
    from ipyparcache.engine.launching import can_have_processes

    return importlib.import_module("multiprocessing") if can_have_processes() else None


class _Front(ModuleType):
    """This module: its names are looked up where they live, and the default backend is set there."""

    def __getattr__(self, name: str) -> Any:
        if name == "mp":
            return _multiprocessing()
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)

    @property
    def DEFAULT_BACKEND(self) -> str:
        """Name of the backend that is used where nothing names one."""
        from ipyparcache.engine.backends import base

        return base.default_backend

    @DEFAULT_BACKEND.setter
    def DEFAULT_BACKEND(self, name: str) -> None:
        from ipyparcache.engine.backends import base

        base.default_backend = name


sys.modules[__name__].__class__ = _Front
