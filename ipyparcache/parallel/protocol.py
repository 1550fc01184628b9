"""Runs a call on a backend that follows joblib's protocol, which may be somebody else's.

Batches are handed to `backend.submit`; the next one follows when one ends, so that the input is drawn no
further ahead than asked. A backend tells of ends in threads of its own: they only put the news into a queue
and draw the next batch under a lock.
"""

from __future__ import annotations

import collections
import queue
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

from ipyparcache.engine.backends.base import ParallelBackendBase
from ipyparcache.engine.filebacked import active
from ipyparcache.parallel.expressions import parse_ahead
from ipyparcache.parallel.tasks import Triple
from ipyparcache.parallel.verbosity import warn_of_waste

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

    from ipyparcache.parallel.front import Parallel


LOOK = 0.5  # seconds between two looks at whether a worker has died of which its backend tells nothing


class BatchedCalls:
    """Tasks that run one after another on a worker: called without arguments, it returns their results."""

    def __init__(self, items: list[Triple], nested: tuple[ParallelBackendBase, Any]):
        self.items = items
        self.nested = nested

    def __call__(self) -> list[Any]:
        """The results of the tasks."""
        from ipyparcache.parallel import config

        backend, n_jobs = self.nested
        level = config.nested(backend.nesting_level or 0)
        with level, config.parallel_config(backend=backend, n_jobs=n_jobs):
            return [function(*arguments, **keywords) for function, arguments, keywords in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.items[:2]!r}...)"


class _Job:
    """A batch under way: where its results come, and when it was handed over."""

    def __init__(self, number: int, size: int):
        self.number = number
        self.size = size
        self.started = time.monotonic()
        self.future: Any = None
        self.values: list[Any] | None = None
        self.error: BaseException | None = None


class ProtocolRun:
    """One call on one backend; iterating gives lists of results, in order or as they come."""

    def __init__(
        self,
        backend: ParallelBackendBase,
        tasks: Iterable[Triple],
        *,
        n_jobs: int,
        ahead: int | None,
        batch: int | None,
        timeout: float | None,
        ordered: bool,
        on_batch: Callable[[int], None],
        on_dispatch: Callable[[int], None],
        around_submit: Callable[[], AbstractContextManager[object]] = nullcontext,
    ):
        self._backend = backend
        self._tasks = iter(tasks)
        self._n_jobs = n_jobs
        self._ahead = ahead
        self._batch = batch
        self._timeout = timeout if backend.supports_timeout else None
        self._ordered = ordered
        self._on_batch = on_batch
        self._on_dispatch = on_dispatch
        self._around_submit = around_submit
        self._lock = threading.RLock()
        self._jobs: collections.deque[_Job] = collections.deque()
        # None: no more will come, which whoever had taken all jobs by then could not know.
        self._news: queue.SimpleQueue[_Job | BaseException | None] = queue.SimpleQueue()
        self._number = 0
        self._waiting: collections.deque[Triple] = collections.deque()
        self._drawn_all = False
        self._drawn = 0  # tasks
        self.total: int | None = None  # tasks, once the input has ended
        self._aborted = False
        self._open = 0  # batches
        self._under_way = 0  # tasks
        self.finished = 0  # tasks
        self._pumping = False

    def start(self) -> None:
        """Hand over as many tasks as may be under way."""
        self._pump()

    def _pump(self) -> None:
        with self._lock:
            if self._pumping:
                return  # a backend that runs a batch at once: the loop below goes on
            self._pumping = True
            try:
                while not self._aborted:
                    room = None if self._ahead is None else self._ahead - self._under_way
                    if room is not None and room <= 0:
                        return
                    if not self._waiting and not self._drawn_all:
                        self._fetch(room)
                    if not self._waiting:
                        return
                    self._dispatch()
            finally:
                self._pumping = False

    def _fetch(self, count: int | None) -> None:
        """Draw tasks from the input; the end of it is noted."""
        drawn = list(islice(self._tasks, count))
        self._drawn += len(drawn)
        if count is None or len(drawn) < count:
            self._drawn_all = True
            self.total = self._drawn
        self._waiting.extend(drawn)

    def _dispatch(self) -> None:
        size = self._batch if self._batch is not None else max(self._backend.compute_batch_size(), 1)
        items = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
        if not items:
            return
        nested: Any = self._backend.get_nested_backend()
        if not isinstance(nested, tuple):
            nested = nested, None
        job = _Job(self._number, len(items))
        self._number += 1
        self._open += 1
        self._under_way += job.size
        self._jobs.append(job)
        self._on_dispatch(len(items))
        with self._around_submit():
            job.future = self._backend.submit(BatchedCalls(items, nested), lambda out: self._ended(job, out))

    def _ended(self, job: _Job, out: Any) -> None:
        """A batch has ended; called by the backend, in whatever thread."""
        self._backend.batch_completed(job.size, time.monotonic() - job.started)
        if self._backend.supports_retrieve_callback:
            try:
                job.values = self._backend.retrieve_result_callback(out)
            except BaseException as error:
                job.error = error
            self._news.put(job)
        else:
            self._on_batch(job.size)
        with self._lock:
            self._open -= 1
            self._under_way -= job.size
            self.finished += job.size
            if self._aborted or job.error is not None:
                return
            try:
                self._pump()
            except BaseException as error:  # of the input: it belongs to the caller
                self._drawn_all = True
                self._news.put(error)
            if self._drawn_all and not self._waiting and self._open == 0:
                self._news.put(None)

    def __iter__(self) -> Generator[list[Any], None, None]:
        if self._backend.supports_retrieve_callback:
            yield from self._by_callback()
        else:
            yield from self._by_waiting()

    def _by_waiting(self) -> Iterator[list[Any]]:
        """For backends whose results are fetched one after another."""
        while True:
            with self._lock:
                job = self._jobs.popleft() if self._jobs else None
                over = job is None and self._open == 0 and self._drawn_all and not self._waiting
            if job is None:
                if over:
                    self._raise_news()
                    return
                self._raise_news()
                time.sleep(0.001)
                continue
            yield self._backend.retrieve_result(job.future, self._timeout)

    def _raise_news(self) -> None:
        try:
            news = self._news.get_nowait()
        except queue.Empty:
            return
        if isinstance(news, BaseException):
            raise news

    def _by_callback(self) -> Iterator[list[Any]]:
        following = 0
        done: dict[int, _Job] = {}
        while True:
            with self._lock:
                over = self._drawn_all and not self._waiting and following == self._number
            if over and self._news.empty():
                return
            job = self._next_news()
            if job is None:
                continue
            if job.error is not None:
                raise job.error
            self._on_batch(job.size)
            if not self._ordered:
                following += 1
                yield job.values or []
                continue
            done[job.number] = job
            while following in done:
                ready = done.pop(following)
                following += 1
                yield ready.values or []

    def _next_news(self) -> _Job | None:
        until = None if self._timeout is None else time.monotonic() + self._timeout
        check_workers = getattr(self._backend, "check_workers", None)
        while True:
            left = None if until is None else max(until - time.monotonic(), 0.0)
            wait = left if check_workers is None else LOOK if left is None else min(left, LOOK)
            try:
                news = self._news.get(timeout=wait)
                break
            except queue.Empty:
                if until is not None and time.monotonic() >= until:
                    from multiprocessing import TimeoutError as LateError

                    raise LateError(f"a batch took longer than {self._timeout} s") from None
            if check_workers is not None and self._news.empty():
                check_workers()
        if isinstance(news, BaseException):
            raise news
        return news

    def abort(self) -> None:
        """Hand over nothing more."""
        with self._lock:
            self._aborted = True
            self._waiting.clear()


def results_of(call: Parallel, iterable: Iterable[Triple], count: int) -> Generator[Any, None, None]:
    """None once the tasks of a call of `Parallel` have begun; then its results, or lists of them."""
    backend = call._backend
    if call.timeout is not None and not backend.supports_timeout:
        warnings.warn(f"The backend {backend!r} does not support timeout.", UserWarning, stacklevel=4)

    def dispatched(size: int) -> None:
        call.n_dispatched_tasks += size
        call.n_dispatched_batches += 1

    def ended(size: int) -> None:
        if run.total is not None:
            call._note_drawn_all(run.total)
        call._note_done(size)

    files = call._made_files() if backend.takes_files else None
    run = ProtocolRun(
        backend,
        iterable,
        n_jobs=count,
        ahead=parse_ahead(call.pre_dispatch, count),
        batch=None if call.batch_size == "auto" else call.batch_size,
        timeout=call.timeout,
        ordered=call.return_ordered,
        on_batch=ended,
        on_dispatch=dispatched,
        around_submit=lambda: active(files),
    )
    taken = 0
    try:
        run.start()
        yield None
        with backend.retrieval_context():
            for values in run:
                if not call.return_generator:
                    yield values
                    continue
                for value in values:
                    taken += 1
                    yield value
    except BaseException as error:
        if isinstance(error, GeneratorExit):
            warn_of_waste(run.finished - taken, call.n_dispatched_tasks - run.finished)
        run.abort()
        backend.abort_everything(ensure_ready=call._managed)
        raise
