"""Our worker processes as a backend of the joblib that the user has: scikit-learn then runs on them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from joblib.parallel import ParallelBackendBase, register_parallel_backend

from ipyparcache.engine.backends.base import to_count
from ipyparcache.engine.cpus import inner_threads

NAME = "ipyparcache"


class JoblibBackend(ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Each of its threads sends batches to one of our workers."""

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    default_n_jobs = -1

    run_batch: Callable[[Callable[[], Any], int], Any]
    """Runs a batch on a worker with so many threads of libraries; returns or raises what it does."""

    begin_bar: Callable[[], tuple[Callable[[int], None], Callable[[], None]]] | None = None
    """Shows the progress of a call: gives what takes the number of tasks done, and what closes it."""

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers a value of `n_jobs` stands for."""
        return to_count(1 if n_jobs is None else n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **arguments: Any) -> int:
        """Start the threads."""
        self.parallel = parallel
        self._count = self.effective_n_jobs(n_jobs)
        self._threads = ThreadPoolExecutor(self._count, "ipyparcache-joblib")
        inner = getattr(self, "inner_max_num_threads", None) or inner_threads(self._count)
        self._inner: int = inner
        return self._count

    def start_call(self) -> None:
        """A call begins."""
        begin = type(self).begin_bar
        self._note: Callable[[int], None] = lambda count: None
        self._close: Callable[[], None] = lambda: None
        if begin is not None:
            self._note, self._close = begin()

    def stop_call(self) -> None:
        """A call has ended."""
        self._close()

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Future[Any]:
        """Have a batch run."""
        future = self._threads.submit(self._run, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def _run(self, func: Callable[[], Any]) -> Any:
        return type(self).run_batch(func, self._inner)

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch; raises what it raised."""
        return out.result()

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """Tell the bar."""
        self._note(batch_size)

    def terminate(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Drop what was not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if ensure_ready:
            self.configure(self._count, self.parallel)


def register(
    run_batch: Callable[[Callable[[], Any], int], Any],
    begin_bar: Callable[[], tuple[Callable[[int], None], Callable[[], None]]],
) -> None:
    """Register the backend as joblib's default."""
    JoblibBackend.run_batch = staticmethod(run_batch)
    JoblibBackend.begin_bar = staticmethod(begin_bar)
    register_parallel_backend(NAME, JoblibBackend, make_default=True)
