"""Which backend and settings a `Parallel` uses: its own arguments, the contexts around it, how deep it is
nested."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType

from ipyparcache.engine import worker
from ipyparcache.engine.backends import base
from ipyparcache.engine.backends.base import (
    BACKENDS,
    EXTERNAL_BACKENDS,
    ParallelBackendBase,
    SequentialBackend,
    ThreadingBackend,
    make_backend,
    to_count,
)

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

UNSET: Any = type("Unset", (), {"__repr__": lambda self: "default", "__reduce__": lambda self: "UNSET"})()

DEFAULTS: dict[str, Any] = {
    "backend": None,
    "n_jobs": None,
    "verbose": 0,
    "temp_folder": None,
    "max_nbytes": "1M",
    "mmap_mode": "r",
    "prefer": None,
    "require": None,
}


VALID_BACKEND_HINTS = ("processes", "threads", None)
VALID_BACKEND_CONSTRAINTS = ("sharedmem", None)


class _Context(threading.local):
    """Settings of the contexts that this thread is in, innermost last, and how deep its task is nested."""

    def __init__(self) -> None:
        self.settings: list[dict[str, Any]] = []
        self.level = 0


_context = _Context()


def nesting_level() -> int:
    """0 outside of tasks, 1 inside of one, 2 inside of a task of that."""
    return _context.level + (1 if worker.is_worker() else 0)


@contextlib.contextmanager
def nested(level: int) -> Iterator[None]:
    """Be inside of tasks, so deep."""
    own = 1 if worker.is_worker() else 0
    before, _context.level = _context.level, max(level - own, 0)
    try:
        yield
    finally:
        _context.level = before


def is_anything_set() -> bool:
    """Whether there is a context around this thread."""
    return bool(_context.settings)


def is_set(name: str) -> bool:
    """Whether a context around this thread sets it."""
    return any(settings.get(name, UNSET) is not UNSET for settings in _context.settings)


def configured(name: str, given: Any = UNSET) -> Any:
    """The value of a setting: the argument, else the innermost context that sets it, else the default."""
    if given is not UNSET:
        return given
    for settings in reversed(_context.settings):
        if settings.get(name, UNSET) is not UNSET:
            return settings[name]
    return DEFAULTS[name]


def active_backend() -> ParallelBackendBase:
    """The backend of a `Parallel` that names none."""
    backend = configured("backend")
    if backend is not None:
        return backend  # type: ignore[no-any-return]
    level = nesting_level()
    if level > 1:
        return SequentialBackend(nesting_level=level)
    if level == 1:
        return ThreadingBackend(nesting_level=level)
    return make_backend(base.default_backend, level)


def active_count(backend: ParallelBackendBase) -> Any:
    """The `n_jobs` of a `Parallel` that gives none."""
    count = configured("n_jobs")
    return backend.default_n_jobs if count is None else count


def check_wishes(prefer: object, require: object) -> None:
    """ValueError if `prefer` or `require` is unknown, or both contradict each other."""
    for name, value, what, known in (
        ("prefer", prefer, "hint", VALID_BACKEND_HINTS),
        ("require", require, "constraint", VALID_BACKEND_CONSTRAINTS),
    ):
        if value not in known:
            raise ValueError(f"{name}={value} is not a valid backend {what}, expected one of {known}")
    if prefer == "processes" and require == "sharedmem":
        raise ValueError("prefer == 'processes' and require == 'sharedmem' are inconsistent settings")


def get_active_backend(
    prefer: Any = UNSET, require: Any = UNSET, verbose: Any = UNSET
) -> tuple[ParallelBackendBase, Any]:
    """The backend and `n_jobs` of a `Parallel` that names neither; None for a number that nothing sets."""
    prefer, require = configured("prefer", prefer), configured("require", require)
    check_wishes(prefer, require)
    level = nesting_level()
    chosen = active_backend()
    if configured("backend") is not None:
        if require == "sharedmem" and not chosen.supports_sharedmem:
            refused, chosen = chosen, ThreadingBackend(nesting_level=level)
            if configured("verbose", verbose) >= 10:
                print(
                    f"Using {type(chosen).__name__} as joblib backend instead of {type(refused).__name__} "
                    "as the latter does not provide shared memory semantics."
                )
            return chosen, 1  # the number of the context was meant for its own backend
    elif require == "sharedmem" or prefer == "threads":
        chosen = ThreadingBackend(nesting_level=level) if level < 2 else SequentialBackend(level)
    elif prefer == "processes" and level == 0:
        chosen = make_backend("loky", level)
    return chosen, configured("n_jobs")


def effective_n_jobs(n_jobs: int | None = -1) -> int:
    """How many workers a `Parallel` with this `n_jobs` would use here.

    Raises
    ------
    ValueError
        If it is 0 or no number.
    """
    if n_jobs is not None and int(n_jobs) == 1:
        return 1
    backend = active_backend()
    if n_jobs is None:
        n_jobs = active_count(backend)
    to_count(n_jobs)
    return int(backend.effective_n_jobs(int(n_jobs)))


class parallel_config:
    """Set defaults of `Parallel` for the calls of this thread, from construction on or for a `with` block.

    Parameters
    ----------
    backend : str or ParallelBackendBase, optional
        The backend.
    n_jobs, verbose, temp_folder, max_nbytes, mmap_mode, prefer, require
        As those of `Parallel`; `n_jobs=None` goes back to the backend's own default.
    inner_max_num_threads : int, optional
        Threads of libraries in each worker.
    **backend_params
        For the constructor of the backend, if it is given by name.
    """

    def __init__(
        self,
        backend: Any = UNSET,
        *,
        n_jobs: Any = UNSET,
        verbose: Any = UNSET,
        temp_folder: Any = UNSET,
        max_nbytes: Any = UNSET,
        mmap_mode: Any = UNSET,
        prefer: Any = UNSET,
        require: Any = UNSET,
        inner_max_num_threads: int | None = None,
        **backend_params: Any,
    ):
        made = self._backend(backend, inner_max_num_threads, backend_params)
        given = {
            "backend": made,
            "n_jobs": n_jobs,
            "verbose": verbose,
            "temp_folder": temp_folder,
            "max_nbytes": max_nbytes,
            "mmap_mode": mmap_mode,
            "prefer": prefer,
            "require": require,
        }
        self._settings = {name: value for name, value in given.items() if value is not UNSET}
        _context.settings.append(self._settings)

    def _backend(self, backend: Any, inner_threads: int | None, params: dict[str, Any]) -> Any:
        if inner_threads is not None:
            params = {**params, "inner_max_num_threads": inner_threads}
        if backend is UNSET or backend is None:
            if params:
                raise ValueError(
                    "inner_max_num_threads and other constructor parameters backend_params are only "
                    "supported when backend is not None."
                )
            return UNSET
        if not isinstance(backend, str) and set(params) - {"inner_max_num_threads"}:
            raise ValueError(
                "Constructor parameters backend_params are only supported when backend is a string."
            )
        if isinstance(backend, str):
            if backend not in BACKENDS and backend not in EXTERNAL_BACKENDS:
                raise ValueError(f"Invalid backend: {backend}, expected one of {sorted(BACKENDS)}")
            constructor = {name: value for name, value in params.items() if name != "inner_max_num_threads"}
            made = make_backend(backend, nesting_level(), **constructor)
        elif isinstance(backend, ParallelBackendBase):
            made = backend
            if made.nesting_level is None:
                made.nesting_level = nesting_level()
        else:
            raise ValueError(f"Invalid backend: {backend!r}, expected one of {sorted(BACKENDS)}")
        if inner_threads is not None:
            if not made.supports_inner_max_num_threads:
                raise AssertionError(
                    f"{type(made).__name__} does not accept setting the inner_max_num_threads argument."
                )
            made.inner_max_num_threads = inner_threads
        return made

    def __enter__(self) -> Any:
        return {name: configured(name) for name in DEFAULTS}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.unregister()

    def unregister(self) -> None:
        """Undo it."""
        _context.settings[:] = [kept for kept in _context.settings if kept is not self._settings]


class parallel_backend(parallel_config):
    """The older form of `parallel_config`: the backend must be named, and all processors are the default.

    Its parameters are those of `parallel_config`.
    """

    def __init__(
        self, backend: Any, n_jobs: Any = -1, inner_max_num_threads: int | None = None, **backend_params: Any
    ):
        super().__init__(
            backend, n_jobs=n_jobs, inner_max_num_threads=inner_max_num_threads, **backend_params
        )

    def __enter__(self) -> Any:
        return self._settings["backend"], self._settings["n_jobs"]
