"""Cached cells, parallel loops and a joblib-shaped API; every public name is resolved on first use.

Each worker process imports `ipyparcache.engine.worker` and so runs this file first: nothing heavier than
`importlib` may be imported here, or every worker pays for it at its start.
"""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False  # type checkers take it for True; importing `typing` costs 5 ms
if TYPE_CHECKING:  # the same names for type checkers, which resolve nothing at run time
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from IPython.core.interactiveshell import InteractiveShell

    from ipyparcache.cells.runs import last_run as last_run
    from ipyparcache.digest.joblibhash import hash as hash
    from ipyparcache.engine.backends.base import ParallelBackendBase as ParallelBackendBase
    from ipyparcache.engine.backends.base import register_parallel_backend as register_parallel_backend
    from ipyparcache.engine.cpus import cpu_count as cpu_count
    from ipyparcache.engine.pool import shutdown_workers as shutdown_workers
    from ipyparcache.logger import Logger as Logger
    from ipyparcache.logger import PrintTime as PrintTime
    from ipyparcache.memory import MemorizedResult as MemorizedResult
    from ipyparcache.memory import Memory as Memory
    from ipyparcache.memory import expires_after as expires_after
    from ipyparcache.parallel.config import effective_n_jobs as effective_n_jobs
    from ipyparcache.parallel.config import parallel_backend as parallel_backend
    from ipyparcache.parallel.config import parallel_config as parallel_config
    from ipyparcache.parallel.front import Parallel as Parallel
    from ipyparcache.parallel.injoblib import register_joblib as register_joblib
    from ipyparcache.parallel.tasks import delayed as delayed
    from ipyparcache.pickling import wrap_non_picklable_objects as wrap_non_picklable_objects
    from ipyparcache.pool import has_shareable_memory as has_shareable_memory
    from ipyparcache.storage.compression import register_compressor as register_compressor
    from ipyparcache.storage.fileformat import dump as dump
    from ipyparcache.storage.fileformat import load as load
    from ipyparcache.storage.store import StoreBackendBase as StoreBackendBase
    from ipyparcache.storage.store import register_store_backend as register_store_backend

__version__ = "0.1.0"

# Where each public name lives: its one home, imported when the name is first asked for.
_HOMES = {
    "Logger": "ipyparcache.logger",
    "MemorizedResult": "ipyparcache.memory",
    "Memory": "ipyparcache.memory",
    "Parallel": "ipyparcache.parallel.front",
    "ParallelBackendBase": "ipyparcache.engine.backends.base",
    "PrintTime": "ipyparcache.logger",
    "StoreBackendBase": "ipyparcache.storage.store",
    "cpu_count": "ipyparcache.engine.cpus",
    "delayed": "ipyparcache.parallel.tasks",
    "dump": "ipyparcache.storage.fileformat",
    "effective_n_jobs": "ipyparcache.parallel.config",
    "expires_after": "ipyparcache.memory",
    "has_shareable_memory": "ipyparcache.pool",
    "hash": "ipyparcache.digest.joblibhash",
    "last_run": "ipyparcache.cells.runs",
    "load": "ipyparcache.storage.fileformat",
    "parallel_backend": "ipyparcache.parallel.config",
    "parallel_config": "ipyparcache.parallel.config",
    "register_compressor": "ipyparcache.storage.compression",
    "register_joblib": "ipyparcache.parallel.injoblib",
    "register_parallel_backend": "ipyparcache.engine.backends.base",
    "register_store_backend": "ipyparcache.storage.store",
    "shutdown_workers": "ipyparcache.engine.pool",
    "wrap_non_picklable_objects": "ipyparcache.pickling",
}

# Modules that `import joblib` loads, so that programs ask for them as attributes.
_MODULES = (
    "_memmapping_reducer",
    "_parallel_backends",
    "_store_backends",
    "backports",
    "compressor",
    "disk",
    "executor",
    "externals",
    "func_inspect",
    "hashing",
    "logger",
    "memory",
    "numpy_pickle",
    "parallel",
    "pool",
)

__all__ = [*_HOMES, "load_ipython_extension", "unload_ipython_extension"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # later look-ups find it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _UnderAnotherName:
    """Finds our modules below another name of the package, and loads them as they are.

    A program that sets `sys.modules["joblib"] = ipyparcache` has libraries import from us what they import
    from joblib. Python would else load `joblib.memory` a second time, with classes that are not ours.
    """

    def __init__(self, module: ModuleType | None = None):
        self.module = module
        self.spec = None if module is None else module.__spec__

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Where a module is, if it is one of ours by another name."""
        top, _, rest = name.partition(".")
        if not rest or top == __name__ or sys.modules.get(top) is not sys.modules[__name__]:
            return None
        try:
            ours = importlib.import_module(f"{__name__}.{rest}")
        except ModuleNotFoundError:
            return None
        return type(__spec__)(name, _UnderAnotherName(ours))  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module as it is."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """It has run: only what the import system has just noted in it is taken back."""
        module.__spec__ = self.spec


sys.meta_path.insert(0, _UnderAnotherName())


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics with an IPython shell; called by `%load_ext ipyparcache`."""
    from ipyparcache.magics import load_ipython_extension as load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take everything back that `load_ipython_extension` put into the shell; called by `%unload_ext`."""
    from ipyparcache.magics import unload_ipython_extension as unload

    unload(shell)
