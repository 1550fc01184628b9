"""The interface between those who schedule tasks and those who run them, and the registry of backends
by name.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

from ipyparcache.engine.cpus import ALONE, cpu_count, environment_value

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any, Self, TypeAlias

    from ipyparcache.engine.batches import Batch, CallOptions, Report

STEAL_AFTER = 0.001  # seconds between the two steps of `Crew.steal`


class Crew(ABC):
    """The workers of one call; a lane is one of them, by number.

    A worker that ends is replaced in its lane. All methods are called from one thread at a time.
    """

    size: int
    can_take_back = False  # whether `take_back` finds what a lane has not begun
    depth: int = 2  # batches that a lane may hold: the one that runs and those that wait behind it

    @abstractmethod
    def outstanding(self, lane: int) -> int:
        """How many batches the lane holds."""

    def busy(self) -> list[int]:
        """The lanes that hold batches."""
        return [lane for lane in range(self.size) if self.outstanding(lane)]

    @abstractmethod
    def is_open(self, lane: int) -> bool:
        """Whether the lane takes batches now."""

    @abstractmethod
    def send(self, lane: int, batch: Batch) -> None:
        """Give a batch to a lane.

        An argument that does not pickle raises; the lane is as before then.
        """

    @abstractmethod
    def poll(self, timeout: float | None) -> list[Report]:
        """What has happened since; waits up to `timeout` seconds for something to happen."""

    @abstractmethod
    def take_back(self, lane: int) -> list[Batch]:
        """Batches that the lane has not begun; they are the caller's again. Empty where this cannot be
        done.
        """

    def has_started(self, lane: int) -> bool:
        """Whether the lane receives what it is sent; its worker may still be starting."""
        return True

    @abstractmethod
    def shorten(self, lane: int) -> None:
        """Have the lane stop behind the task that it runs; the rest of the batch comes back with its
        report.
        """

    def steal(self, lane: int) -> Batch | None:
        """Take back what lies behind the running task of a batch.

        The first call says that no further task may be begun; one at least `STEAL_AFTER` seconds later gives
        the rest, if the lane still runs the same task. None where that cannot be done, or not yet.
        """
        return None

    @abstractmethod
    def running(self, lane: int) -> tuple[Batch, int, float] | None:
        """The batch that the lane runs, the position of the task in it, and the clock as that task began."""

    @abstractmethod
    def kill(self, lane: int) -> list[Report]:
        """End the task that the lane runs, at once: what it had finished, then `Died`, as reports."""

    @abstractmethod
    def stop(self) -> None:
        """Begin nothing more: what was not begun is dropped, running tasks go on."""

    @abstractmethod
    def close(self) -> None:
        """End the call. Returns at once; what still runs is ended within a second."""


CrewFactory: TypeAlias = "Callable[[object, int, CallOptions], Crew]"


def _processes() -> CrewFactory:
    from ipyparcache.engine.backends.processes import ProcessCrew

    return ProcessCrew


def _threads() -> CrewFactory:
    from ipyparcache.engine.backends.inprocess import ThreadCrew

    return ThreadCrew


def _sequential() -> CrewFactory:
    from ipyparcache.engine.backends.inprocess import SequentialCrew

    return SequentialCrew


# By name, what imports the file of a backend when it is first used.
_factories: dict[str, Callable[[], CrewFactory]] = {
    "processes": _processes,
    "threads": _threads,
    "sequential": _sequential,
}


def crew_factory(name: str) -> CrewFactory:
    """What makes the crews of a backend; ValueError for an unknown name."""
    if name not in _factories:
        raise ValueError(f"Invalid backend: {name!r}, expected one of {sorted(_factories)}")
    return _factories[name]()


# -- joblib's protocol ------------------------------------------------------------------------------------


class FallbackToBackend(Exception):
    """Raised by `configure` of a backend that has another one run the call.

    Parameters
    ----------
    backend : ParallelBackendBase
        That one.
    """

    def __init__(self, backend: ParallelBackendBase):
        super().__init__(backend)
        self.backend = backend


class ParallelBackendBase:
    """What a backend for `Parallel` is, as joblib's protocol has it.

    A backend of somebody else overrides `effective_n_jobs` and `submit`, and most often `configure` and
    `terminate`; it need not call `__init__`. Register it with `register_parallel_backend`, or hand an
    instance to `Parallel` or `parallel_config`.
    """

    default_n_jobs: int = 1
    supports_inner_max_num_threads: bool = False
    supports_retrieve_callback: bool = False
    supports_sharedmem: bool = False
    uses_threads: bool = False
    takes_files: bool = False
    """Whether its tasks are pickled in a thread that puts large arrays into files, if files are asked for."""

    nesting_level: int | None = None
    inner_max_num_threads: int | None = None
    parallel: Any = None
    backend_kwargs: dict[str, Any] = {}  # noqa: RUF012 (a default for subclasses that do not call `__init__`)

    @property
    def supports_return_generator(self) -> bool:
        """Whether results can be had one by one."""
        return self.supports_retrieve_callback

    @property
    def supports_timeout(self) -> bool:
        """Whether `timeout` means anything."""
        return self.supports_retrieve_callback

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        """TypeError for a class that does not say how many tasks run at once: what `abc` does, and costs."""
        if cls.effective_n_jobs is ParallelBackendBase.effective_n_jobs:
            raise TypeError(f"Can't instantiate abstract class {cls.__name__}: it lacks effective_n_jobs")
        return super().__new__(cls)

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **backend_kwargs: Any,
    ):
        self.nesting_level = nesting_level
        self.inner_max_num_threads = inner_max_num_threads
        self.backend_kwargs = backend_kwargs

    def effective_n_jobs(self, n_jobs: int) -> int:
        """How many tasks run at once for this `n_jobs`."""
        raise TypeError(f"{type(self).__name__} must say itself how many tasks run at once")

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **backend_kwargs: Any,
    ) -> int:
        """Get ready for a call; how many workers there are."""
        self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Any:
        """Have a batch run: `func()` gives the list of its results; `callback` is told of its end."""
        apply_async = getattr(type(self), "apply_async", None)
        if apply_async is None:
            raise NotImplementedError(f"{type(self).__name__} must implement `submit`")
        warnings.warn(
            "`apply_async` is deprecated: implement and use `submit` instead",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.apply_async(func, callback)  # type: ignore[attr-defined]

    def retrieve_result_callback(self, out: Any) -> Any:
        """The results of a batch, from what its callback was given; raises what the batch raised."""
        raise NotImplementedError(f"{type(self).__name__} says that it supports this and does not")

    def retrieve_result(self, out: Any, timeout: float | None = None) -> Any:
        """The results of a batch, from what `submit` gave; waits for them."""
        if self.supports_timeout or timeout is not None:
            return out.get(timeout=timeout)
        return out.get()

    def start_call(self) -> None:
        """A call begins."""

    def stop_call(self) -> None:
        """A call has ended."""

    def terminate(self) -> None:
        """No call follows: let go of the workers."""

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has failed: drop what it still has to do; with `ensure_ready` another call follows."""

    def compute_batch_size(self) -> int:
        """Tasks of the next batch."""
        return 1

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """A batch of so many tasks has taken so many seconds."""

    def get_exceptions(self) -> list[type[BaseException]]:
        """Kept for backends that override it."""
        return []

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """The backend, and number of workers, of calls inside of a task."""
        level = (self.nesting_level or 0) + 1
        if level > 1:
            return SequentialBackend(nesting_level=level), None
        return ThreadingBackend(nesting_level=level), None

    def retrieval_context(self) -> contextlib.AbstractContextManager[None]:
        """Entered while the caller waits for results."""
        return contextlib.nullcontext()

    @staticmethod
    def in_main_thread() -> bool:
        """Whether this is the main thread."""
        return threading.current_thread() is threading.main_thread()


class AutoBatchingMixin:
    """Batch sizes by measured time, for backends of others that inherit it."""

    MIN_IDEAL_BATCH_DURATION = 0.2
    MAX_IDEAL_BATCH_DURATION = 2.0

    _DEFAULT_EFFECTIVE_BATCH_SIZE = 1
    _DEFAULT_SMOOTHED_BATCH_DURATION = 0.0
    _effective_batch_size = _DEFAULT_EFFECTIVE_BATCH_SIZE
    _smoothed_batch_duration = _DEFAULT_SMOOTHED_BATCH_DURATION

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)

    def compute_batch_size(self) -> int:
        """Tasks of the next batch."""
        seconds = self._smoothed_batch_duration
        size = self._effective_batch_size
        if 0 < seconds < self.MIN_IDEAL_BATCH_DURATION:
            size = max(1, min(2 * size, 2 * int(size * self.MIN_IDEAL_BATCH_DURATION / seconds)))
        elif seconds > self.MAX_IDEAL_BATCH_DURATION and size >= 2:
            size = max(1, 2 * int(size * self.MIN_IDEAL_BATCH_DURATION / seconds))
        if size != self._effective_batch_size:
            self._effective_batch_size = size
            self._smoothed_batch_duration = 0.0
        return size

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """A batch of so many tasks has taken so many seconds."""
        if batch_size == self._effective_batch_size:
            known = self._smoothed_batch_duration
            self._smoothed_batch_duration = duration if known == 0.0 else 0.8 * known + 0.2 * duration

    def reset_batch_stats(self) -> None:
        """Begin to measure anew."""
        self._effective_batch_size = self._DEFAULT_EFFECTIVE_BATCH_SIZE
        self._smoothed_batch_duration = self._DEFAULT_SMOOTHED_BATCH_DURATION


class EngineBackend(ParallelBackendBase):
    """One of our own backends, by its name in joblib's protocol; `crew` is its name here."""

    crew: str = "sequential"
    supports_retrieve_callback = True
    known_arguments: frozenset[str] = frozenset()

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **backend_kwargs: Any,
    ):
        if not backend_kwargs.keys() <= self.known_arguments:
            unknown = min(backend_kwargs.keys() - self.known_arguments)
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {unknown!r}")
        super().__init__(nesting_level, inner_max_num_threads, **backend_kwargs)

    @property
    def submits(self) -> bool:
        """Whether a subclass wants batches handed over one by one, to do more with them or inside of them."""
        kind = type(self)
        follows = kind.submit is EngineBackend.submit
        follows &= kind.get_nested_backend is ParallelBackendBase.get_nested_backend
        return not follows or hasattr(kind, "apply_async")

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers a value of `n_jobs` stands for: -1 all processors, -2 all but one."""
        return to_count(1 if n_jobs is None else n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **backend_kwargs: Any,
    ) -> int:
        """Get ready for a call; arguments of the constructor may be given here, too."""
        given = {name: value for name, value in backend_kwargs.items() if name in self.known_arguments}
        if given:
            self.backend_kwargs = {**self.backend_kwargs, **given}
        return super().configure(n_jobs, parallel)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Any:
        """Have a batch run, in a call of `Parallel`; its future is also given to `callback`."""
        return self.parallel._submit(func, callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        """The results of a batch, from its future; raises what the batch raised."""
        return out.result()


class LokyBackend(EngineBackend):
    """Tasks on our worker processes."""

    crew = "processes"
    supports_inner_max_num_threads = True

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers a value of `n_jobs` stands for; 1 inside of a daemonic process."""
        count = to_count(1 if n_jobs is None else n_jobs)
        if count == 1:
            return 1
        reason = None
        if is_daemonic():
            culprit = "distributed.worker.daemon" if inside_dask_worker() else "a daemonic process"
            reason = f"from inside of {culprit}"
        elif are_processes_unwanted():
            reason = "with JOBLIB_MULTIPROCESSING=0"
        if reason is None:
            return count
        warnings.warn(f"Loky-backed parallel loops cannot be called {reason}, setting n_jobs=1", stacklevel=3)
        return 1

    known_arguments = frozenset({"initializer", "initargs", "idle_worker_timeout"})


class ThreadingBackend(EngineBackend):
    """Tasks on threads of this process."""

    crew = "threads"
    supports_sharedmem = True
    uses_threads = True


class SequentialBackend(EngineBackend):
    """Tasks one after another, where they are called."""

    crew = "sequential"
    supports_sharedmem = True
    uses_threads = True

    @property
    def supports_timeout(self) -> bool:
        """A task that runs here cannot be ended."""
        return False

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """One, whatever is asked for."""
        to_count(1 if n_jobs is None else n_jobs)
        return 1

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """A serial loop changes nothing for what runs inside of it."""
        return self, None


def is_daemonic() -> bool:
    """Whether this process is one of `multiprocessing` that may have no children of that kind."""
    # Who was started by it has it loaded, and not just begun to, as another thread may have.
    current_process = getattr(sys.modules.get("multiprocessing"), "current_process", None)
    return current_process is not None and bool(current_process().daemon)


def are_processes_unwanted() -> bool:
    """Whether the user switched processes off, as joblib's users do."""
    return environment_value(ALONE).strip() == "0"


def inside_dask_worker() -> bool:
    """Whether this process is a worker of dask: its setting `distributed.worker.daemon` makes it daemonic."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return False
    try:
        distributed.get_worker()
    except ValueError:
        return False
    return True


def to_count(n_jobs: Any) -> int:
    """How many workers a value of `n_jobs` stands for: -1 all processors, -2 all but one.

    Raises
    ------
    ValueError
        If it is no number, or 0.
    """
    try:
        count = int(n_jobs)
    except ValueError as error:
        raise ValueError("n_jobs could not be converted to int") from error
    if count == 0:
        raise ValueError("n_jobs == 0 in Parallel has no meaning")
    return count if count > 0 else max(cpu_count() + 1 + count, 1)


def _multiprocessing_backend(**kwargs: Any) -> ParallelBackendBase:
    try:
        from ipyparcache.engine.backends.multiprocess import MultiprocessingBackend
    except ImportError:  # Python was built without `_multiprocessing`
        warnings.warn("this system has no multiprocessing: tasks run on threads", UserWarning, stacklevel=5)
        return ThreadingBackend(kwargs.get("nesting_level"))

    for name, factory in BACKENDS.items():
        if factory is _multiprocessing_backend:
            BACKENDS[name] = MultiprocessingBackend  # who looks now finds the class itself
    return MultiprocessingBackend(**kwargs)


BACKENDS: dict[str, Callable[..., ParallelBackendBase]] = {
    "loky": LokyBackend,
    "processes": LokyBackend,
    "threading": ThreadingBackend,
    "threads": ThreadingBackend,
    "sequential": SequentialBackend,
    "multiprocessing": _multiprocessing_backend,
}
"""Backends by the names that users write; `register_parallel_backend` adds to it."""

EXTERNAL_BACKENDS: dict[str, Callable[[], None]] = {}
"""Backends that register themselves when they are first named; what a name's function does."""

default_backend = "loky"


def register_parallel_backend(
    name: str, factory: Callable[..., ParallelBackendBase], make_default: bool = False
) -> None:
    """Make a backend known by name, for `Parallel(backend=name)` and `parallel_config(name)`.

    Parameters
    ----------
    name : str
        Its name.
    factory : callable
        Makes it: a subclass of `ParallelBackendBase`, or a function that returns one.
    make_default : bool
        Use it where nothing names a backend.
    """
    global default_backend
    BACKENDS[name] = factory
    if make_default:
        default_backend = name


def make_backend(name: str, level: int, **arguments: Any) -> ParallelBackendBase:
    """A backend by its name.

    Raises
    ------
    ValueError
        If the name is not known.
    """
    if name not in BACKENDS and name in EXTERNAL_BACKENDS:
        EXTERNAL_BACKENDS[name]()
    factory = BACKENDS.get(name)
    if factory is None:
        raise ValueError(f"Invalid backend: {name}, expected one of {sorted(BACKENDS)}")
    # A class of somebody else may derive from ours, and take other arguments.
    ours = factory.__module__.startswith("ipyparcache.") if isinstance(factory, type) else False
    if ours or takes_argument(factory, "nesting_level"):
        return factory(nesting_level=level, **arguments)
    made = factory(**arguments)  # a factory may be any function that returns a backend
    if made.nesting_level is None:
        made.nesting_level = level
    return made


@functools.lru_cache(maxsize=64)  # each call of `Parallel` asks
def takes_argument(function: Callable[..., object], name: str) -> bool:
    """Whether a callable can be given an argument of this name."""
    import inspect  # 10 ms, and only backends of others are looked at

    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(p.name == name or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
