"""A call of `Parallel` on our own engine: its options in the engine's words, and its results as asked for."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator

from ipyparcache.engine.batches import Batch, Ran
from ipyparcache.engine.cpus import inner_threads
from ipyparcache.engine.filebacked import active, is_active
from ipyparcache.engine.outcome import Error
from ipyparcache.engine.pool import shutdown_workers
from ipyparcache.errors import TaskTimeout
from ipyparcache.lean import pickle
from ipyparcache.parallel.config import nested, nesting_level
from ipyparcache.parallel.dispatch import Done, Options, Run, Source, try_at_once
from ipyparcache.parallel.tasks import Triple, is_transparent
from ipyparcache.parallel.verbosity import warn_of_waste

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    import queue
    from typing import Any

    from ipyparcache.engine.backends.atonce import Begun
    from ipyparcache.parallel.front import Parallel

USUAL_AHEAD = ("2 * n_jobs", "2*n_jobs")  # taken as: as many as keep the workers busy
NOTHING = contextlib.nullcontext()


class AfterInitializer:
    """A function that is called once its worker has been initialised."""

    done: set[bytes] = set()  # noqa: RUF012 (the initialisers that this process has run)

    def __init__(
        self, key: bytes, initializer: Callable[..., object], arguments: tuple[Any, ...], function: Any
    ):
        self.key = key
        self.initializer = initializer
        self.arguments = arguments
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        if self.key not in AfterInitializer.done:
            AfterInitializer.done.add(self.key)
            self.initializer(*self.arguments)
        return self.function(*args, **kwargs)


_initialized: bytes | None = None  # what the workers of the pool were initialised with last


class Cancel(threading.Event):
    """Set when the tasks of a generator are to be dropped; `left` when its `with` block has ended."""

    left = False


def _source(call: Parallel, iterable: Iterable[Triple], count: int) -> tuple[Source, int | None]:
    """Where tasks are drawn from, and how many may be under way; None: as many as keep workers busy."""
    ahead = None
    if call.pre_dispatch not in USUAL_AHEAD:
        from ipyparcache.parallel.expressions import parse_ahead

        ahead = parse_ahead(call.pre_dispatch, count)
        if ahead is None and not isinstance(iterable, (list, tuple)):
            iterable = list(iterable)
    source = Source(
        _behind_initializer(call, iterable) if call._backend.backend_kwargs or call._kwargs else iterable,
        triples=True,
        careful=True if call.return_generator else lambda: not is_transparent(iterable),
    )
    return source, ahead


def _begun(call: Parallel, function: object, source: Source, count: int) -> Ran | Begun | Batch | None:
    """What became of the call if it could be run at once, or its beginning."""
    if (
        call.timeout is None
        and not call.retries
        and call.batch_size == "auto"
        and call._arrays is None
        and call._backend.inner_max_num_threads is None
        and "inner_max_num_threads" not in call._kwargs
        and call._crew() == "processes"
    ):
        return try_at_once(function, source, inner_threads(count))
    return None


def _run(
    call: Parallel,
    function: object,
    source: Source,
    count: int,
    ahead: int | None,
    cancelled: threading.Event | None = None,
    begun: Begun | Batch | None = None,
) -> Run:
    options = Options(
        n_jobs=count,
        backend=call._crew(),
        batch=None if call.batch_size == "auto" else call.batch_size,
        timeout=call.timeout,
        retries=call.retries,
        on_error=call.on_error,
        inner_threads=call._kwargs.get("inner_max_num_threads", call._backend.inner_max_num_threads),
        prompt=call.return_generator,
    )
    if call._arrays is not None and call._crew() == "processes":
        call._made_files()
    return Run(
        function,
        source,
        options,
        cancelled=cancelled,
        around_thread=functools.partial(nested, nesting_level() + 1),
        ahead=ahead,
        on_look=call._begin_late_bar if call._early is not None else None,
        begun=begun,
    )


def _behind_initializer(call: Parallel, iterable: Iterable[Triple]) -> Iterable[Triple]:
    """The tasks, each behind the initialiser of its worker if there is one."""
    global _initialized
    arguments = {**call._backend.backend_kwargs, **call._kwargs}
    initializer = arguments.get("initializer")
    if initializer is None or call._crew() != "processes":
        return iterable
    values = tuple(arguments.get("initargs", ()))
    key = _key_of((initializer, values))
    if key != _initialized:
        shutdown_workers()  # workers that were initialised otherwise, or not at all
        _initialized = key
    return (
        (AfterInitializer(key, initializer, values, function), args, kwargs)
        for function, args, kwargs in iterable
    )


def _unwrapped(call: Parallel, value: Error) -> Any:
    if call.on_error == "collect":
        return value
    error = value.exception
    if isinstance(error, TaskTimeout):
        from multiprocessing import TimeoutError as LateError  # 20 ms, and few calls fail so

        raise LateError(str(error)) from error
    if isinstance(error, KeyboardInterrupt):
        raise error  # as joblib does; a SystemExit of a task ends the task alone
    return value.unwrap()


def as_list(call: Parallel, iterable: Iterable[Triple], count: int) -> list[Any]:
    """The results of a call, in order."""
    source, ahead = _source(call, iterable, count)
    function = source.peek_function()
    if function is None:
        return []
    telling = bool(call.verbose or call._bar is not None or call._is_followed())
    begun = _begun(call, function, source, count) if ahead is None else None
    if isinstance(begun, Ran):
        call.n_dispatched_tasks = len(begun.values)
        call.n_dispatched_batches = 1
        call._note_drawn_all(len(begun.values))
        if telling:
            call._note_done(len(begun.values), begun.times[-1] - begun.times[0], begun.worker)
        else:
            call.n_completed_tasks = len(begun.values)
        return begun.values
    run = _run(call, function, source, count, ahead, begun=begun)
    results: list[Any] = []
    missing = object()
    with active(call._files) if call._files is not None or is_active() else NOTHING:
        for done in run:
            end = done.first + len(done.values)
            if telling or call._bar is not None:
                call._took(run, done)
            else:
                call.n_completed_tasks += len(done.values)
                call.n_dispatched_batches += 1
                if call._early is not None:
                    call._early.append((len(done.values), done.times[-1] - done.times[0], done.worker))
            if done.failed:
                done.values[0] = _unwrapped(call, done.values[0])
            if done.first == len(results):
                results += done.values
                continue
            if end > len(results):
                results += [missing] * (end - len(results))
            results[done.first : end] = done.values
    call.n_dispatched_tasks = run.source.drawn
    return results


def as_generator(call: Parallel, iterable: Iterable[Triple], count: int) -> Generator[Any, None, None]:
    """Results as they come, in order or not; a thread of its own keeps the workers busy meanwhile."""
    from queue import SimpleQueue

    found: queue.SimpleQueue[Done | BaseException | None] = SimpleQueue()
    cancelled = call._cancel = Cancel()
    source, ahead = _source(call, iterable, count)
    function = source.peek_function()
    run = None if function is None else _run(call, function, source, count, ahead, cancelled)
    level = nesting_level()
    files = call._files
    taken = finished = 0

    def drive() -> None:
        nonlocal finished
        try:
            if run is not None:
                with active(files), nested(level):
                    for done in run:
                        finished += len(done.values)
                        found.put(done)
                        if cancelled.is_set():
                            break
            found.put(None)
        except BaseException as error:
            found.put(error)

    driver = threading.Thread(target=drive, name="ipyparcache-generator", daemon=True)
    driver.start()
    try:
        yield None
        news = _news(call, run, found, cancelled)
        for value in _in_order(news) if call.return_ordered else _as_they_come(news):
            taken += 1
            yield value
    except GeneratorExit:
        if run is not None and not cancelled.left:
            warn_of_waste(finished - taken, run.source.drawn - finished)
        raise
    finally:
        cancelled.set()
        if threading.current_thread() is not driver:
            driver.join(2.0)
        if call._cancel is cancelled:
            call._cancel = None


def _news(
    call: Parallel, run: Run | None, found: queue.SimpleQueue[Done | BaseException | None], cancelled: Cancel
) -> Iterator[Done]:
    while (news := found.get()) is not None:
        if cancelled.left:
            break
        if isinstance(news, BaseException):
            raise news
        assert run is not None
        call._took(run, news)
        if news.failed:
            news.values[0] = _unwrapped(call, news.values[0])
        yield news
    if cancelled.left:
        raise RuntimeError("the `with` block of this Parallel has ended: take all results inside of it")


def _as_they_come(news: Iterator[Done]) -> Iterator[Any]:
    for done in news:
        yield from _handed_over(done)


def _handed_over(done: Done) -> Iterator[Any]:
    """The values of a batch, none kept behind its turn: the consumer decides how long a result lives."""
    values = deque(done.values)
    done.values.clear()  # the thread that fetched them still has `done` at hand
    while values:
        yield values.popleft()


def _in_order(news: Iterator[Done]) -> Iterator[Any]:
    waiting: dict[int, Done] = {}
    following = 0
    for done in news:
        waiting[done.first] = done
        while following in waiting:
            done = waiting.pop(following)
            following += len(done.values)
            yield from _handed_over(done)


def _key_of(value: object) -> bytes:
    """Bytes that are equal for equal initialisers and arguments."""
    try:
        return pickle.dumps(value, 5)
    except Exception:  # functions that only we can send: told apart by identity
        return repr([id(part) for part in (value if isinstance(value, tuple) else (value,))]).encode()
