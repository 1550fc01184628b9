"""`Parallel` and its options, as joblib's users know them.

A call becomes a `dispatch.Run` on one of our own backends (see `running`), or a `protocol.ProtocolRun` on a
backend of somebody else; here lie joblib's names and rules, there all about sending, timing and failing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from types import GeneratorType, TracebackType

from ipyparcache.engine.backends import base
from ipyparcache.engine.backends.base import (
    BACKENDS,
    EXTERNAL_BACKENDS,
    EngineBackend,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    ThreadingBackend,
    make_backend,
    register_parallel_backend,
    to_count,
)
from ipyparcache.engine.cpus import cpu_count
from ipyparcache.engine.launching import can_have_processes
from ipyparcache.engine.pool import the_pool
from ipyparcache.parallel.config import (
    UNSET,
    active_count,
    check_wishes,
    configured,
    effective_n_jobs,
    get_active_backend,
    is_anything_set,
    is_set,
    nesting_level,
    parallel_backend,
    parallel_config,
)
from ipyparcache.parallel.hooks import Followed
from ipyparcache.parallel.tasks import Triple, delayed, forget_delayed

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any, Literal

    from ipyparcache.engine.filebacked import FileArrays
    from ipyparcache.parallel.dispatch import Done, Run
    from ipyparcache.parallel.running import Cancel
    from ipyparcache.parallel.submitting import Lanes
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
    "register_parallel_backend",
]


# -- Parallel ---------------------------------------------------------------------------------------------

_as_list: Callable[[Parallel, Iterable[Triple], int], list[Any]] | None = None
BAR_AFTER = 0.05  # seconds: most calls are over before there is anything to show


class Parallel(Followed):
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
    inner_max_num_threads : int, optional
        Threads of BLAS, OpenMP and the like in each worker.
    **backend_kwargs
        For the backend, such as `initializer` and `initargs`.
    """

    # What no call has changed yet: here, as most objects serve one call.
    _running: Callable[[], object] | None = None
    _managed = False
    _managed_count = 0
    _cancel: Cancel | None = None
    _files: FileArrays | None = None
    _lanes: Lanes | None = None
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
        from ipyparcache.engine.filebacked import parse_limit

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
        if not isinstance(self._backend, EngineBackend):
            # It is wanted soon; and a child that is forked while another thread loads it never gets it.
            import ipyparcache.parallel.protocol  # noqa: F401
        try:
            count = self._backend.configure(
                n_jobs=self.n_jobs,
                parallel=self,
                prefer=self.prefer,
                require=self.require,
                **self._for_backend(),
            )
        except FallbackToBackend as fallback:
            self._backend = fallback.backend
            return self._initialize_backend()
        if not count:
            raise RuntimeError(f"{type(self._backend).__name__} has no active worker.")
        return int(count)

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
            "verbose": max(0, self.verbose - 50),  # what is told of arrays; the rest is told here
        }
        return {**extra, **self._kwargs}

    def _listed(self, iterable: Iterable[Triple], count: int) -> list[Any]:
        if self._has_lanes(count):
            as_list = _as_list or self._loaded(count)
            whole = False
            self._backend.start_call()
            try:
                with self._backend.retrieval_context():
                    values = as_list(self, iterable if self.seed is None else self._seeded(iterable), count)
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

    def _loaded(self, count: int) -> Callable[[Parallel, Iterable[Triple], int], list[Any]]:
        """`running.as_list`, which the first call loads while its workers start."""
        global _as_list
        if self._crew() == "processes":
            with contextlib.suppress(OSError):  # told when workers are asked for
                the_pool().begin(count)
        from ipyparcache.parallel.running import as_list

        _as_list = as_list
        return as_list

    def _begin(self, iterable: Iterable[Triple], count: int) -> None:
        self._begin_counting(iterable)
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
        if self._early is not None and time.monotonic() - self._began > BAR_AFTER:
            early, self._early = self._early, None
            self._begin_bar()
            assert self._bar is not None
            for count, seconds, worker in early:
                self._bar[0].done_batch(count, seconds, worker)

    def _has_lanes(self, count: int) -> bool:
        """Whether the call runs on workers of our own engine."""
        backend = self._backend
        if count == 1 or not isinstance(backend, EngineBackend) or backend.crew == "sequential":
            return False
        return not backend.submits

    def _wants_bar(self) -> bool:
        if threading.current_thread() is not threading.main_thread() or self.progress is False:
            return False
        if self.progress is True:
            return True
        if self.verbose or nesting_level() or self._is_followed():
            return False
        return "IPython" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())

    def _note_done(self, count: int, seconds: float = 0.0, worker: int | None = None) -> None:
        if self._bar is not None:
            self._bar[0].done_batch(count, seconds, worker)
        self._count_done(count, seconds)

    def _end(self, whole: bool) -> None:
        if self._bar is not None:
            tracker, bar = self._bar
            self._bar = None
            tracker.finish("done" if whole else "failed")
            bar.close()
        self._end_counting(whole)
        self._running = None
        if not self._managed:
            self._close_files()
        forget_delayed()

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
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            lanes.close()
        try:
            self._backend.stop_call()
            if not self._managed:
                self._backend.terminate()
        finally:
            self._end(whole)

    def _results_on_backend(self, iterable: Iterable[Triple], count: int) -> Generator[Any, None, None]:
        if self._has_lanes(count):
            from ipyparcache.parallel.running import as_generator

            with self._backend.retrieval_context():
                yield from as_generator(self, iterable, count)
        elif count == 1 or self._crew() == "sequential":
            yield None
            yield from self._serially(iterable)
        else:
            from ipyparcache.parallel.protocol import results_of

            yield from results_of(self, iterable, count)

    def _crew(self) -> str:
        """Name of our backend that the call runs on; empty for one of somebody else."""
        return self._backend.crew if isinstance(self._backend, EngineBackend) else ""

    def _submit(self, batch: Callable[[], Any], callback: Callable[[Any], None] | None) -> Any:
        """Have a batch run that a backend derived from ours hands over."""
        if self._lanes is None:
            from ipyparcache.parallel.submitting import Lanes

            inner = self._kwargs.get("inner_max_num_threads", self._backend.inner_max_num_threads)
            self._lanes = Lanes(self._effective_n_jobs(), self._crew(), inner)
        return self._lanes.submit(batch, callback)

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
                    from ipyparcache.engine.outcome import Error

                    return Error(error)
                raise
        raise AssertionError("unreachable")

    def _made_files(self) -> FileArrays | None:
        """Where large arrays go, if files were asked for."""
        if self._arrays is not None and self._files is None:
            folder, limit, mode = self._arrays
            from ipyparcache.engine.filebacked import FileArrays

            self._files = FileArrays(limit, mode, folder)
        return self._files

    def _took(self, run: Run, done: Done) -> None:
        self.n_dispatched_tasks = run.source.drawn
        self.n_dispatched_batches += 1
        if run.source.exhausted and self._original_iterator is not None:
            self._note_drawn_all(run.source.drawn)
        seconds = done.times[-1] - done.times[0]
        self._note_done(len(done.values), seconds if seconds == seconds else 0.0, done.worker)


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=6)
