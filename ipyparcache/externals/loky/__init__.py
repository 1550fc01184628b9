"""What programs ask of joblib's process pool, asked of ours."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

from ipyparcache.engine.cpus import cpu_count
from ipyparcache.engine.pool import shutdown_workers
from ipyparcache.externals.loky import process_executor
from ipyparcache.parallel.submitting import Lanes
from ipyparcache.pickling import wrap_non_picklable_objects

__all__ = [
    "BrokenProcessPool",
    "cpu_count",
    "get_reusable_executor",
    "process_executor",
    "set_loky_pickler",
    "wrap_non_picklable_objects",
]

BrokenProcessPool = process_executor.BrokenProcessPool


class ReusableExecutor(Executor):
    """The worker processes that all calls of `Parallel` share, as an executor.

    Parameters
    ----------
    count : int
        How many tasks run at once.
    """

    def __init__(self, count: int):
        self.count = count
        self.is_shut = False
        self._lanes: Lanes | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a function run on a worker."""
        if self._lanes is None:
            self._lanes = Lanes(self.count, "processes", None)
        return self._lanes.submit(partial(fn, *args, **kwargs), None)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, kill_workers: bool = False
    ) -> None:
        """End all workers, those of `Parallel` too; whoever needs some later gets new ones."""
        self.is_shut = True
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            lanes.close(finish=wait and not (cancel_futures or kill_workers))
        shutdown_workers()


_executor: ReusableExecutor | None = None


def get_reusable_executor(max_workers: int | None = None, **_options: Any) -> ReusableExecutor:
    """The workers of this process as an executor; `get_reusable_executor().shutdown()` ends them.

    It is the same one as long as it is not shut down and nobody asks for another number.

    Parameters
    ----------
    max_workers : int, optional
        How many tasks run at once; one for each processor if not given.
    **_options
        Those of joblib's pool, which ours has no need of.
    """
    global _executor
    if _executor is None or _executor.is_shut or max_workers not in (None, _executor.count):
        _executor = ReusableExecutor(cpu_count() if max_workers is None else max_workers)
    return _executor


def set_loky_pickler(loky_pickler: str | None = None) -> None:
    """Taken for programs that choose a pickler: ours sends what any of them can, so nothing changes.

    Raises
    ------
    ImportError, AttributeError
        If there is no such module, or it has no `Pickler`.
    """
    if loky_pickler:
        importlib.import_module(loky_pickler).Pickler  # noqa: B018 (an AttributeError is what is wanted)
