"""Batches that a backend derived from one of ours hands over itself: a thread for each worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ipyparcache.parallel.dispatch import Options, run_tasks

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any


class Lanes:
    """As many threads as a call has workers.

    Parameters
    ----------
    count : int
        How many.
    crew : str
        Our backend that runs the batches: `processes`, or `threads` for these threads themselves.
    inner_threads : int or None
        Threads of libraries in each worker.
    """

    def __init__(self, count: int, crew: str, inner_threads: int | None):
        self._crew = crew
        self._inner_threads = inner_threads
        self._cancelled = threading.Event()
        self._threads = ThreadPoolExecutor(count, "ipyparcache-batches")

    def submit(self, batch: Callable[[], Any], callback: Callable[[Any], None] | None) -> Future[Any]:
        """Have a batch run; `callback` is given the future at its end."""
        future = self._threads.submit(self._run, batch)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def _run(self, batch: Callable[[], Any]) -> Any:
        if self._crew == "threads":
            return batch()
        options = Options(n_jobs=1, backend=self._crew, inner_threads=self._inner_threads)
        for _, outcome in run_tasks(batch, [()], options, cancelled=self._cancelled):
            return outcome.unwrap()
        raise AssertionError("one task has one outcome")

    def close(self, finish: bool = False) -> None:
        """Begin nothing more, and end what runs on worker processes; with `finish`, all ends as it would."""
        if not finish:
            self._cancelled.set()
        self._threads.shutdown(wait=finish, cancel_futures=not finish)
