"""`Parallel` and `delayed`, as joblib's users know them.

A call becomes a `dispatch.Run` on one of our own backends, or a `protocol.ProtocolRun` on a backend of
somebody else; here lie joblib's names and rules, there everything about sending, timing and failing.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from types import CodeType, FunctionType, GeneratorType, ModuleType, TracebackType

from ipyparcache.engine.backends import base
from ipyparcache.engine.backends.base import (
    BACKENDS,
    EXTERNAL_BACKENDS,
    EngineBackend,
    ParallelBackendBase,
    SequentialBackend,
    ThreadingBackend,
    make_backend,
    register_parallel_backend,
    to_count,
)
from ipyparcache.engine.batches import Batch, Ran
from ipyparcache.engine.cpus import cpu_count, inner_threads
from ipyparcache.engine.filebacked import FileArrays, active, is_active, parse_limit
from ipyparcache.engine.launching import can_have_processes
from ipyparcache.engine.outcome import Error
from ipyparcache.engine.pool import shutdown_workers
from ipyparcache.errors import TaskTimeout
from ipyparcache.lean import pickle
from ipyparcache.logger import Logger
from ipyparcache.parallel.config import (
    UNSET,
    active_count,
    check_wishes,
    configured,
    effective_n_jobs,
    get_active_backend,
    is_anything_set,
    is_set,
    nested,
    nesting_level,
    parallel_backend,
    parallel_config,
)
from ipyparcache.parallel.dispatch import Done, Options, Run, Source, run_tasks, try_at_once
from ipyparcache.parallel.verbosity import is_time_to_tell, last_line, print_line, progress_line

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    import queue
    from typing import Any, Literal

    from ipyparcache.engine.backends.atonce import Begun
    from ipyparcache.parallel.protocol import Triple
    from ipyparcache.progress.tracker import Tracker
    from ipyparcache.progress.widget import Bar

__all__ = [
    "BACKENDS",
    "EXTERNAL_BACKENDS",
    "Parallel",
    "ParallelBackendBase",
    "cpu_count",
    "delayed",
    "effective_n_jobs",
    "parallel_backend",
    "parallel_config",
    "register_joblib",
    "register_parallel_backend",
]


# -- delayed ----------------------------------------------------------------------------------------------

_last_delayed: tuple[object, Any] = (None, None)


def delayed(function: Callable[..., Any]) -> Callable[..., Triple]:
    """Decorate a function so that a call returns (function, arguments, keywords) and runs nothing."""
    # People write `delayed(f)(i) for i in ...`: wrapping anew for each task costs more than running it.
    global _last_delayed
    last, made = _last_delayed
    if last is function:
        return made  # type: ignore[no-any-return]

    def delayed_function(*args: object, **kwargs: object) -> Triple:
        return function, args, kwargs

    if type(function) is FunctionType and not function.__dict__:  # what `wraps` does, in half the time
        for name in functools.WRAPPER_ASSIGNMENTS:
            setattr(delayed_function, name, getattr(function, name))
        delayed_function.__wrapped__ = function  # type: ignore[attr-defined]
    else:
        with contextlib.suppress(AttributeError):  # some callables lack what it copies
            delayed_function = functools.wraps(function)(delayed_function)
    _last_delayed = (function, delayed_function)
    return delayed_function


def _forget_delayed() -> None:
    global _last_delayed
    _last_delayed = (None, None)


# -- the input --------------------------------------------------------------------------------------------

_CONTAINERS: tuple[Iterable[object], ...] = ([], (), range(0), {}, {}.values(), {}.items(), set(), "", b"")
_PLAIN_ITERATORS = {type(iter(made)) for made in _CONTAINERS}


@functools.lru_cache(maxsize=256)
def _facts_of(code: CodeType) -> tuple[int, bool, frozenset[str]]:
    """How many calls a piece of code makes, whether it stores into objects, and the globals that it reads."""
    import dis

    steps = list(dis.get_instructions(code))
    calls = sum(1 for step in steps if step.opname in ("CALL", "CALL_KW", "CALL_FUNCTION_EX"))
    stores = any(step.opname.startswith(("STORE_SUBSCR", "STORE_ATTR")) for step in steps)
    return calls, stores, frozenset(step.argval for step in steps if step.opname.startswith("LOAD_GLOBAL"))


def _runs_no_code(source: object) -> bool:
    """Whether an iterator goes over containers only, if need be through `zip`, `enumerate` or a generator."""
    if type(source) in _PLAIN_ITERATORS:
        return True
    if type(source) in (zip, enumerate, reversed):
        parts = [part for part in gc.get_referents(source) if part is not type(source)]
        inner = [one for part in parts for one in (part if type(part) is tuple else (part,))]
        return all(_runs_no_code(one) for one in inner if hasattr(type(one), "__next__"))
    if type(source) is not GeneratorType or source.gi_frame is None or source.gi_code.co_name != "<genexpr>":
        return False
    calls, stores, _ = _facts_of(source.gi_code)
    return not calls and not stores and _runs_no_code(source.gi_frame.f_locals.get(".0"))


def is_transparent(tasks: object) -> bool:
    """Whether drawing a task runs no code of the user, so that no argument can change between two of them.

    True for lists, and for `delayed(f)(x, i) for i in range(n)` with nothing called but `delayed(f)` and its
    result.
    """
    if isinstance(tasks, (list, tuple)):
        return True
    if type(tasks) is not GeneratorType or tasks.gi_frame is None or tasks.gi_code.co_name != "<genexpr>":
        return False
    calls, stores, names = _facts_of(tasks.gi_code)
    if stores or calls != 2:
        return False
    own = tasks.gi_frame.f_locals  # made anew each time it is asked for
    if not _runs_no_code(own.get(".0")):
        return False
    spaces = tasks.gi_frame.f_globals
    for one in (*map(spaces.get, names), *own.values()):
        if one is delayed or (type(one) is ModuleType and getattr(one, "delayed", None) is delayed):
            return True
    return False


# -- Parallel ---------------------------------------------------------------------------------------------

USUAL_AHEAD = ("2 * n_jobs", "2*n_jobs")  # taken as: as many as keep the workers busy
NOTHING = contextlib.nullcontext()
BAR_AFTER = 0.05  # seconds: most calls are over before there is anything to show


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


class _Cancel(threading.Event):
    """Set when the tasks of a generator are to be dropped; `left` when its `with` block has ended."""

    left = False


class Parallel(Logger):
    """Run calls made with `delayed` on workers, and return their results in order.

    Parameters
    ----------
    n_jobs : int, optional
        Workers; -1 one for each processor, -2 one less.
    backend : str, ParallelBackendBase or multiprocessing context, optional
        `processes` (or `loky`), `threads` (or `threading`), `sequential`, `multiprocessing`, or a
        registered name.
    return_as : {'list', 'generator', 'generator_unordered'}
        A list, or a generator of results in the order of the tasks, or as they come.
    verbose : int
        Prints progress; the more, the more often. To stdout from 50 on.
    timeout : float, optional
        Seconds that a task may take, counted from its own start; its worker is then replaced.
    pre_dispatch : int or str
        Tasks drawn ahead: a number, `all`, or arithmetic with `n_jobs`.
    batch_size : int or 'auto'
        Tasks sent at once.
    temp_folder, max_nbytes, mmap_mode
        If any is given, arrays of at least `max_nbytes` reach the workers as `np.memmap` of files in
        `temp_folder`. Else they arrive as private writable arrays, sent once a worker.
    prefer : {'processes', 'threads'}, optional
        A hint, where nothing names a backend.
    require : {'sharedmem'}, optional
        Tasks must see the caller's objects.
    return_generator : bool, optional
        Older spelling of `return_as`.
    progress : bool or 'auto'
        Show a bar; 'auto' does so in notebooks and terminals, for calls that are not inside of tasks.
    seed : int, optional
        Give each task random generators of its own, the same for any number of workers.
    on_error : {'raise', 'collect'}
        With 'collect' the `Error` of a failed task takes the place of its result.
    retries : int
        Further attempts at a task that failed.
    **backend_kwargs
        For the backend, such as `initializer` and `initargs`.
    """

    # What no call has changed yet: here, as most objects serve one call.
    n_completed_tasks = 0
    n_dispatched_tasks = 0
    n_dispatched_batches = 0
    n_tasks: int | None = None
    _running: Callable[[], object] | None = None
    _managed = False
    _managed_count = 0
    _cancel: _Cancel | None = None
    _files: FileArrays | None = None
    _started = 0.0
    _told = 0
    _length: int | None = None
    _bar: tuple[Tracker, Bar] | None = None
    _early: list[tuple[int, float, int | None]] | None = None  # counts of a call that has no bar so far

    def __init__(
        self,
        n_jobs: Any = UNSET,
        backend: Any = UNSET,
        return_as: str | bool = "list",
        verbose: Any = UNSET,
        timeout: float | None = None,
        pre_dispatch: Any = "2 * n_jobs",
        batch_size: Any = "auto",
        temp_folder: Any = UNSET,
        max_nbytes: Any = UNSET,
        mmap_mode: Any = UNSET,
        prefer: Any = UNSET,
        require: Any = UNSET,
        *,
        return_generator: bool | None = None,
        progress: bool | Literal["auto"] = "auto",
        seed: int | Sequence[int] | None = None,
        on_error: Literal["raise", "collect"] = "raise",
        retries: int = 0,
        inner_max_num_threads: int | None = None,
        **backend_kwargs: Any,
    ):
        super().__init__()
        if isinstance(return_as, bool):  # where the older `return_generator` stood
            return_generator, return_as = return_as, "list"
        if return_generator is not None:
            if return_as != "list" and return_generator is not (return_as != "list"):
                raise ValueError("return_generator contradicts return_as")
            if return_generator and return_as == "list":
                return_as = "generator"
        if return_as not in ("list", "generator", "generator_unordered"):
            raise ValueError(
                f"return_as must be 'list', 'generator' or 'generator_unordered', not {return_as!r}"
            )
        if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size <= 0):
            raise ValueError(f"batch_size must be 'auto' or a positive integer, got: {batch_size!r}")
        if on_error not in ("raise", "collect"):
            raise ValueError(f"on_error must be 'raise' or 'collect', not {on_error!r}")
        self.return_as = return_as
        self.return_generator = return_as != "list"
        self.return_ordered = return_as != "generator_unordered"
        if is_anything_set():
            verbose = configured("verbose", UNSET if verbose is None else verbose)
            prefer = configured("prefer", UNSET if prefer is None else prefer)
            require = configured("require", UNSET if require is None else require)
        self.verbose = 0 if verbose is UNSET or verbose is None else verbose
        self.prefer = None if prefer is UNSET else prefer
        self.require = None if require is UNSET else require
        self.timeout = timeout
        self.pre_dispatch = pre_dispatch
        self.batch_size = batch_size
        self.progress = progress
        self.seed = seed
        self.on_error = on_error
        self.retries = retries
        self._arrays = self._array_settings(temp_folder, max_nbytes, mmap_mode)
        self._backend, given = self._chosen_backend(backend, n_jobs)
        self._kwargs = self._checked_arguments(backend_kwargs) if backend_kwargs else backend_kwargs
        if inner_max_num_threads is not None:
            if not self._backend.supports_inner_max_num_threads:
                raise AssertionError(
                    f"{type(self._backend).__name__} does not accept setting the "
                    "inner_max_num_threads argument."
                )
            self._kwargs["inner_max_num_threads"] = inner_max_num_threads
        try:
            self.n_jobs = int(given)
        except ValueError as error:
            raise ValueError("n_jobs could not be converted to int") from error
        if self.return_generator and not self._backend.supports_return_generator:
            raise ValueError(f"Backend {self._backend} does not support return_as={return_as}")

    @staticmethod
    def _array_settings(folder: Any, limit: Any, mode: Any) -> tuple[str | None, int | None, str] | None:
        """Folder, limit and mode of arrays in files; None if nobody asked for files."""
        if folder is limit is mode is UNSET and not is_anything_set():
            return None
        given = (("temp_folder", folder), ("max_nbytes", limit), ("mmap_mode", mode))
        asked = any(value is not UNSET or is_set(name) for name, value in given)
        limit, mode = configured("max_nbytes", limit), configured("mmap_mode", mode)
        if mode not in (None, "r", "r+", "w+", "c"):
            raise ValueError(f"mmap_mode {mode!r} is none of None, 'r', 'r+', 'w+', 'c'")
        size = parse_limit(limit)
        if not asked or size is None or mode is None:
            return None
        return configured("temp_folder", folder), size, mode

    def _checked_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments for the backend; those that none of ours knows are refused."""
        if isinstance(self._backend, EngineBackend):
            unknown = sorted(set(arguments) - self._backend.known_arguments)
            if unknown:
                raise TypeError(f"Parallel got an unexpected keyword argument {unknown[0]!r}")
        return arguments

    def _chosen_backend(self, backend: Any, n_jobs: Any) -> tuple[ParallelBackendBase, Any]:
        """The backend and `n_jobs` by the rules of precedence."""
        given = None if n_jobs is UNSET else n_jobs
        level = nesting_level()
        plain = self.prefer is None and self.require is None and (backend is UNSET or backend is None)
        if plain and level == 0 and not is_anything_set():
            chosen = make_backend(base.default_backend, 0)
            return self._possible(chosen, 0), chosen.default_n_jobs if given is None else given
        check_wishes(self.prefer, self.require)
        if backend is not UNSET and backend is not None:
            chosen = self._named_backend(backend, level)
            if self.require == "sharedmem" and not chosen.supports_sharedmem:
                raise ValueError(f"Backend {chosen} does not support shared memory")
        else:
            chosen, count = get_active_backend(self.prefer, self.require, self.verbose)
            given = count if given is None else given
        return self._possible(chosen, level), active_count(chosen) if given is None else given

    def _named_backend(self, backend: Any, level: int) -> ParallelBackendBase:
        if isinstance(backend, ParallelBackendBase):
            if backend.nesting_level is None:
                backend.nesting_level = level
            return backend
        if hasattr(backend, "Pool") and hasattr(backend, "Lock"):
            return make_backend("multiprocessing", level, context=backend)
        if not isinstance(backend, str):
            raise ValueError(f"Invalid backend: {backend!r}, expected one of {sorted(BACKENDS)}")
        return make_backend(backend, level)

    @staticmethod
    def _possible(chosen: ParallelBackendBase, level: int) -> ParallelBackendBase:
        """The backend, or threads where processes cannot be had, or none of both."""
        if not isinstance(chosen, EngineBackend) or chosen.crew == "sequential":
            return chosen
        if chosen.crew == "processes" and can_have_processes():
            return chosen
        from ipyparcache.engine.backends.inprocess import can_have_threads

        if not can_have_threads():
            _warn_once("this system has neither worker processes nor threads: tasks run one by one")
            return SequentialBackend(nesting_level=level)
        if chosen.crew == "processes":
            _warn_once("this system has no worker processes: tasks run on threads")
            return ThreadingBackend(nesting_level=level)
        return chosen

    def _effective_n_jobs(self) -> int:
        """How many workers a call would have."""
        return int(self._backend.effective_n_jobs(self.n_jobs))

    def _counted(self) -> int:
        """How many workers there are, once the backend is ready; none but the caller for `n_jobs=1`."""
        return to_count(self.n_jobs) if self.n_jobs in (0, 1) else self._initialize_backend()

    def _initialize_backend(self) -> int:
        """Get the backend ready; how many workers there are."""
        count = self._backend.configure(
            n_jobs=self.n_jobs,
            parallel=self,
            prefer=self.prefer,
            require=self.require,
            **self._for_backend(),
        )
        if not count:
            raise RuntimeError(f"{type(self._backend).__name__} has no active worker.")
        return int(count)

    # ---- hooks that subclasses override

    def print_progress(self) -> None:
        """Tell how far the call is; called at the end of each batch."""
        if not self.verbose:
            return
        elapsed = time.monotonic() - self._started
        total = self.n_tasks
        if is_time_to_tell(
            self.verbose, self.n_dispatched_batches, self.n_completed_tasks, total, self._told
        ):
            self._told = self.n_completed_tasks
            self._print(progress_line(self.n_completed_tasks, total, elapsed, self._length))

    def _print(self, msg: str) -> None:
        """Print one line of a call."""
        if self.verbose:
            print_line(self, self.verbose, msg)

    def __enter__(self) -> Parallel:
        self._managed = True
        self._managed_count = self._counted()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._managed = False
        running = self._running() if self._running is not None else None
        if isinstance(running, GeneratorType):
            if self._cancel is not None:
                self._cancel.left = True  # what is asked of the generator from now on is an error
                self._cancel.set()
            elif not isinstance(self._backend, EngineBackend):
                running.close()
            self._running = None
        self._backend.terminate()
        self._close_files()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_jobs={self.n_jobs})"

    # ---- a call

    def __call__(self, iterable: Iterable[Triple]) -> Any:
        """Run the calls of the iterable; a list of their results, or a generator of them.

        Raises
        ------
        RuntimeError
            If an earlier call of this object still runs.
        """
        if self._running is not None and self._running() is not None:
            msg = "This Parallel instance is already running !"
            if self.return_generator:
                msg += " Before submitting new tasks, wait for all of its results or close its generator."
            raise RuntimeError(msg)
        count = self._managed_count if self._managed else self._counted()
        self._begin(iterable, count)
        if not self.return_generator:
            self._running = lambda: self
            try:
                return self._listed(iterable, count)
            finally:
                self._running = None
        results = self._results(iterable, count)
        next(results)  # the tasks start now, not with the first result that is asked for
        self._running = weakref.ref(results)
        return results

    def _for_backend(self) -> dict[str, Any]:
        """What `configure` of a backend of somebody else is given besides."""
        if isinstance(self._backend, EngineBackend):
            return {}
        folder, limit, mode = self._arrays or (None, None, None)
        extra: dict[str, Any] = {
            "temp_folder": folder,
            "max_nbytes": limit,
            "mmap_mode": mode,
            "verbose": self.verbose,
        }
        return {**extra, **self._kwargs}

    def _listed(self, iterable: Iterable[Triple], count: int) -> list[Any]:
        if self._has_lanes(count):
            whole = False
            self._backend.start_call()
            try:
                with self._backend.retrieval_context():
                    values = self._as_list(iterable if self.seed is None else self._seeded(iterable), count)
                whole = True
                return values
            finally:
                self._end_on_backend(whole)
        results = self._results(iterable, count)
        next(results)
        found: list[Any] = []
        for chunk in results:
            found += chunk
        return found

    def _begin(self, iterable: Iterable[Triple], count: int) -> None:
        self.n_completed_tasks = self.n_dispatched_tasks = self.n_dispatched_batches = self._told = 0
        self.n_tasks = None
        self._started = time.monotonic()
        self._length = len(iterable) if hasattr(iterable, "__len__") else None  # type: ignore[arg-type]
        if self.verbose and count > 1 and not isinstance(self._backend, SequentialBackend):
            self._print(f"Using backend {type(self._backend).__name__} with {count} concurrent workers.")
        self._early = None
        if self._wants_bar():
            if self.progress == "auto" and not self.return_generator and self._has_lanes(count):
                self._early = []
            else:
                self._begin_bar()

    def _begin_bar(self) -> None:
        from ipyparcache.progress.tracker import Tracker
        from ipyparcache.progress.widget import show

        tracker = Tracker(self._length, "Parallel")
        tracker.start(self._length)
        self._bar = tracker, show(tracker, None, "auto", "shown" if self.progress == "auto" else "always")

    def _begin_late_bar(self) -> None:
        """Begin a bar in the midst of a call that is no longer short."""
        if self._early is not None and time.monotonic() - self._started > BAR_AFTER:
            early, self._early = self._early, None
            self._begin_bar()
            assert self._bar is not None
            for count, seconds, worker in early:
                self._bar[0].done_batch(count, seconds, worker)

    def _has_lanes(self, count: int) -> bool:
        """Whether the call runs on workers of our own engine."""
        backend = self._backend
        return count > 1 and isinstance(backend, EngineBackend) and backend.crew != "sequential"

    def _wants_bar(self) -> bool:
        if threading.current_thread() is not threading.main_thread() or self.progress is False:
            return False
        if self.progress is True:
            return True
        if self.verbose or nesting_level():
            return False
        return "IPython" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())

    def _note_done(self, count: int, seconds: float = 0.0, worker: int | None = None) -> None:
        self.n_completed_tasks += count
        if self._bar is not None:
            self._bar[0].done_batch(count, seconds, worker)
        if self.verbose or self._has_own_progress:
            self.print_progress()

    @property
    def _has_own_progress(self) -> bool:
        return type(self).print_progress is not Parallel.print_progress

    def _end(self, whole: bool) -> None:
        if self._bar is not None:
            tracker, bar = self._bar
            self._bar = None
            tracker.finish("done" if whole else "failed")
            bar.close()
        if whole:
            self.n_tasks = self.n_completed_tasks
            if self.verbose or self._has_own_progress:
                if self._has_own_progress:
                    self.print_progress()
                self._print(last_line(self.n_tasks, time.monotonic() - self._started, self._length))
        self._running = None
        if not self._managed:
            self._close_files()
        _forget_delayed()

    def _close_files(self) -> None:
        files, self._files = self._files, None
        if files is not None:
            files.close()

    def _results(self, iterable: Iterable[Triple], count: int) -> Generator[Any, None, None]:
        """First None, once the tasks have started; then results, or lists of them for a call that returns a
        list."""
        if self.seed is not None:
            iterable = self._seeded(iterable)
        whole = False
        self._backend.start_call()
        try:
            yield from self._results_on_backend(iterable, count)
            whole = True
        finally:
            self._end_on_backend(whole)

    def _end_on_backend(self, whole: bool) -> None:
        try:
            self._backend.stop_call()
            if not self._managed:
                self._backend.terminate()
        finally:
            self._end(whole)

    def _results_on_backend(self, iterable: Iterable[Triple], count: int) -> Generator[Any, None, None]:
        if self._has_lanes(count):
            with self._backend.retrieval_context():
                yield from self._as_generator(iterable, count)
        elif count == 1 or isinstance(self._backend, EngineBackend):
            yield None
            yield from self._serially(iterable)
        else:
            yield from self._on_protocol(iterable, count)

    def _crew(self) -> str:
        assert isinstance(self._backend, EngineBackend)
        return self._backend.crew

    def _seeded(self, iterable: Iterable[Triple]) -> Iterator[Triple]:
        from ipyparcache.parallel.seeding import Seeded

        assert self.seed is not None
        for index, (function, arguments, keywords) in enumerate(iterable):
            yield Seeded(function, self.seed, index), arguments, keywords

    def _serially(self, iterable: Iterable[Triple]) -> Generator[Any, None, None]:
        size = 1 if self.batch_size == "auto" else self.batch_size
        if self.timeout is not None:
            warnings.warn(
                "The backend class 'SequentialBackend' does not support timeout. "
                f"You have set 'timeout={self.timeout}' in Parallel but the 'timeout' parameter will not be "
                "used.",
                UserWarning,
                stacklevel=4,
            )
        tasks = iter(iterable)
        while batch := list(islice(tasks, size)):
            self.n_dispatched_tasks += len(batch)
            self.n_dispatched_batches += 1
            for task in batch:
                function, arguments, keywords = task
                started = time.monotonic()
                value = self._call_here(function, arguments, keywords)
                self._note_done(1, time.monotonic() - started, os.getpid())
                yield value if self.return_generator else [value]

    def _call_here(self, function: Any, arguments: Any, keywords: Any) -> Any:
        for attempt in range(self.retries + 1):
            try:
                return function(*arguments, **keywords)
            except Exception as error:
                if attempt < self.retries:
                    continue
                if self.on_error == "collect":
                    return Error(error)
                raise
        raise AssertionError("unreachable")

    # ---- on a backend of somebody else

    def _on_protocol(self, iterable: Iterable[Triple], count: int) -> Generator[Any, None, None]:
        from ipyparcache.parallel.expressions import parse_ahead
        from ipyparcache.parallel.protocol import ProtocolRun

        backend = self._backend
        if self.timeout is not None and not backend.supports_timeout:
            warnings.warn(f"The backend {backend!r} does not support timeout.", UserWarning, stacklevel=4)

        def dispatched(size: int) -> None:
            self.n_dispatched_tasks += size
            self.n_dispatched_batches += 1

        files = self._made_files() if backend.takes_files else None
        run = ProtocolRun(
            backend,
            iterable,
            n_jobs=count,
            ahead=parse_ahead(self.pre_dispatch, count),
            batch=None if self.batch_size == "auto" else self.batch_size,
            timeout=self.timeout,
            ordered=self.return_ordered,
            on_batch=self._note_done,
            on_dispatch=dispatched,
            around_submit=lambda: active(files),
        )
        taken = 0
        try:
            run.start()
            yield None
            with backend.retrieval_context():
                for values in run:
                    if not self.return_generator:
                        yield values
                        continue
                    for value in values:
                        taken += 1
                        yield value
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                _warn_of_waste(run.finished - taken, self.n_dispatched_tasks - run.finished)
            run.abort()
            backend.abort_everything(ensure_ready=self._managed)
            raise

    def _made_files(self) -> FileArrays | None:
        """Where large arrays go, if files were asked for."""
        if self._arrays is not None and self._files is None:
            folder, limit, mode = self._arrays
            self._files = FileArrays(limit, mode, folder)
        return self._files

    # ---- on our own engine

    def _source(self, iterable: Iterable[Triple], count: int) -> tuple[Source, int | None]:
        """Where tasks are drawn from, and how many may be under way; None: as many as keep workers busy."""
        ahead = None
        if self.pre_dispatch not in USUAL_AHEAD:
            from ipyparcache.parallel.expressions import parse_ahead

            ahead = parse_ahead(self.pre_dispatch, count)
            if ahead is None and not isinstance(iterable, (list, tuple)):
                iterable = list(iterable)
        source = Source(
            self._initialized(iterable) if self._backend.backend_kwargs or self._kwargs else iterable,
            triples=True,
            careful=True if self.return_generator else lambda: not is_transparent(iterable),
        )
        return source, ahead

    def _begun(self, function: object, source: Source, count: int) -> Ran | Begun | Batch | None:
        """What became of the call if it could be run at once, or its beginning."""
        if (
            self.timeout is None
            and not self.retries
            and self.batch_size == "auto"
            and self._arrays is None
            and self._backend.inner_max_num_threads is None
            and "inner_max_num_threads" not in self._kwargs
            and self._crew() == "processes"
        ):
            return try_at_once(function, source, inner_threads(count))
        return None

    def _run(
        self,
        function: object,
        source: Source,
        count: int,
        ahead: int | None,
        cancelled: threading.Event | None = None,
        begun: Begun | Batch | None = None,
    ) -> Run:
        options = Options(
            n_jobs=count,
            backend=self._crew(),
            batch=None if self.batch_size == "auto" else self.batch_size,
            timeout=self.timeout,
            retries=self.retries,
            on_error=self.on_error,
            inner_threads=self._kwargs.get("inner_max_num_threads", self._backend.inner_max_num_threads),
            prompt=self.return_generator,
        )
        if self._arrays is not None and self._crew() == "processes":
            self._made_files()
        return Run(
            function,
            source,
            options,
            cancelled=cancelled,
            around_thread=functools.partial(nested, nesting_level() + 1),
            ahead=ahead,
            on_look=self._begin_late_bar if self._early is not None else None,
            begun=begun,
        )

    def _initialized(self, iterable: Iterable[Triple]) -> Iterable[Triple]:
        """The tasks, each behind the initialiser of its worker if there is one."""
        global _initialized
        arguments = {**self._backend.backend_kwargs, **self._kwargs}
        initializer = arguments.get("initializer")
        if initializer is None or self._crew() != "processes":
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

    def _unwrapped(self, value: Error) -> Any:
        if self.on_error == "collect":
            return value
        error = value.exception
        if isinstance(error, TaskTimeout):
            from multiprocessing import TimeoutError as LateError  # 20 ms, and few calls fail so

            raise LateError(str(error)) from error
        if isinstance(error, KeyboardInterrupt):
            raise error  # as joblib does; a SystemExit of a task ends the task alone
        return value.unwrap()

    def _took(self, run: Run, done: Done) -> None:
        self.n_dispatched_tasks = run.source.drawn
        self.n_dispatched_batches += 1
        if run.source.exhausted and self.n_tasks is None:
            self.n_tasks = run.source.drawn
        seconds = done.times[-1] - done.times[0]
        self._note_done(len(done.values), 0.0 if math.isnan(seconds) else seconds, done.worker)

    def _as_list(self, iterable: Iterable[Triple], count: int) -> list[Any]:
        source, ahead = self._source(iterable, count)
        function = source.peek_function()
        if function is None:
            return []
        telling = bool(self.verbose or self._bar is not None or self._has_own_progress)
        begun = self._begun(function, source, count) if ahead is None else None
        if isinstance(begun, Ran):
            self.n_dispatched_tasks = self.n_tasks = len(begun.values)
            self.n_dispatched_batches = 1
            if telling:
                self._note_done(len(begun.values), begun.times[-1] - begun.times[0], begun.worker)
            else:
                self.n_completed_tasks = len(begun.values)
            return begun.values
        run = self._run(function, source, count, ahead, begun=begun)
        results: list[Any] = []
        missing = object()
        with active(self._files) if self._files is not None or is_active() else NOTHING:
            for done in run:
                end = done.first + len(done.values)
                if telling or self._bar is not None:
                    self._took(run, done)
                else:
                    self.n_completed_tasks += len(done.values)
                    if self._early is not None:
                        self._early.append((len(done.values), done.times[-1] - done.times[0], done.worker))
                if done.failed:
                    done.values[0] = self._unwrapped(done.values[0])
                if done.first == len(results):
                    results += done.values
                    continue
                if end > len(results):
                    results += [missing] * (end - len(results))
                results[done.first : end] = done.values
        self.n_dispatched_tasks = run.source.drawn
        return results

    def _as_generator(self, iterable: Iterable[Triple], count: int) -> Generator[Any, None, None]:
        """Results as they come, in order or not; a thread of its own keeps the workers busy meanwhile."""
        from queue import SimpleQueue

        found: queue.SimpleQueue[Done | BaseException | None] = SimpleQueue()
        cancelled = self._cancel = _Cancel()
        source, ahead = self._source(iterable, count)
        function = source.peek_function()
        run = None if function is None else self._run(function, source, count, ahead, cancelled)
        level = nesting_level()
        files = self._files
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
            news = self._news(run, found, cancelled)
            for value in self._in_order(news) if self.return_ordered else self._as_they_come(news):
                taken += 1
                yield value
        except GeneratorExit:
            if run is not None and not cancelled.left:
                _warn_of_waste(finished - taken, run.source.drawn - finished)
            raise
        finally:
            cancelled.set()
            if threading.current_thread() is not driver:
                driver.join(2.0)
            if self._cancel is cancelled:
                self._cancel = None

    def _news(
        self, run: Run | None, found: queue.SimpleQueue[Done | BaseException | None], cancelled: _Cancel
    ) -> Iterator[Done]:
        while (news := found.get()) is not None:
            if cancelled.left:
                break
            if isinstance(news, BaseException):
                raise news
            assert run is not None
            self._took(run, news)
            if news.failed:
                news.values[0] = self._unwrapped(news.values[0])
            yield news
        if cancelled.left:
            raise RuntimeError("the `with` block of this Parallel has ended: take all results inside of it")

    def _as_they_come(self, news: Iterator[Done]) -> Iterator[Any]:
        for done in news:
            yield from done.values

    def _in_order(self, news: Iterator[Done]) -> Iterator[Any]:
        waiting: dict[int, Done] = {}
        following = 0
        for done in news:
            waiting[done.first] = done
            while following in waiting:
                values = deque(waiting.pop(following).values)
                following += len(values)
                while values:
                    yield values.popleft()  # not kept: the consumer decides how long a result lives


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=6)


def _warn_of_waste(unused: int, cancelled: int) -> None:
    """Warn of what a generator that is dropped half-way leaves."""
    parts = [f"{unused} tasks had been computed and are not used"] if unused > 0 else []
    if cancelled > 0:
        parts.append(f"{cancelled} tasks were under way and have been cancelled")
    if parts:
        warnings.warn(
            f"A generator of Parallel was dropped before its end: {'; '.join(parts)}. "
            "Give it fewer tasks, or a smaller pre_dispatch.",
            UserWarning,
            stacklevel=4,
        )


def _key_of(value: object) -> bytes:
    """Bytes that are equal for equal initialisers and arguments."""
    try:
        return pickle.dumps(value, 5)
    except Exception:  # functions that only we can send: told apart by identity
        return repr([id(part) for part in (value if isinstance(value, tuple) else (value,))]).encode()


def register_joblib() -> None:
    """Make our workers the default backend of the joblib that is installed: scikit-learn runs on them."""
    from ipyparcache.engine.backends.joblib import register

    register(_run_batch, _begin_bar)


def _run_batch(batch: Callable[[], Any], inner_threads: int) -> Any:
    options = Options(n_jobs=1, backend="processes", inner_threads=inner_threads)
    for _, outcome in run_tasks(batch, [()], options):
        return outcome.unwrap()
    raise AssertionError("one task has one outcome")


def _begin_bar() -> tuple[Callable[[int], None], Callable[[], None]]:
    from ipyparcache.progress.tracker import Tracker
    from ipyparcache.progress.widget import show

    tracker = Tracker(None, "joblib")
    tracker.start()
    bar = show(tracker, None, "auto", "shown")

    def close() -> None:
        tracker.finish("done")
        bar.close()

    return tracker.done_batch, close
