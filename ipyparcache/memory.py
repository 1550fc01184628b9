"""`Memory`: results of functions kept in a folder, in the same store and format as the cells'."""

from __future__ import annotations

import functools
import importlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ipyparcache.digest.containers import PartsKind
from ipyparcache.digest.walk import KINDS
from ipyparcache.disk import memstr_to_bytes
from ipyparcache.logger import Logger
from ipyparcache.memorized import (
    AsyncMemorizedFunc,
    AsyncNotMemorizedFunc,
    CacheWarning,
    MemorizedFunc,
    NotMemorizedFunc,
    is_coroutine_function,
)
from ipyparcache.results import (
    MemorizedResult,
    NotMemorizedResult,
    open_results,
)
from ipyparcache.storage.store import StoreBackendBase, register_store_backend

if TYPE_CHECKING:
    import datetime

__all__ = [
    "AsyncMemorizedFunc",
    "AsyncNotMemorizedFunc",
    "CacheWarning",
    "JobLibCollisionWarning",
    "MemorizedFunc",
    "MemorizedResult",
    "Memory",
    "NotMemorizedFunc",
    "NotMemorizedResult",
    "StoreBackendBase",
    "expires_after",
    "register_store_backend",
]


# Names that programs import from here, with their homes.
_ELSEWHERE = {
    "_STORE_BACKENDS": ("ipyparcache.storage.store", "STORE_BACKENDS"),
    "_build_func_identifier": ("ipyparcache.results", "name_of"),
    "filter_args": ("ipyparcache.func_inspect", "filter_args"),
    "format_call": ("ipyparcache.func_inspect", "format_call"),
    "format_signature": ("ipyparcache.func_inspect", "format_signature"),
    "format_time": ("ipyparcache.logger", "format_time"),
    "get_func_code": ("ipyparcache.func_inspect", "get_func_code"),
    "get_func_name": ("ipyparcache.func_inspect", "get_func_name"),
}


def __getattr__(name: str) -> object:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, there = _ELSEWHERE[name]
    return getattr(importlib.import_module(home), there)


class JobLibCollisionWarning(UserWarning):
    """Kept for code that filters it: versions of a function lie side by side here, so none is ever issued."""


def expires_after(
    days: float = 0,
    seconds: float = 0,
    microseconds: float = 0,
    milliseconds: float = 0,
    minutes: float = 0,
    hours: float = 0,
    weeks: float = 0,
) -> Callable[[Mapping[str, Any]], bool]:
    """A `cache_validation_callback` by which a result counts for this long after it was stored.

    The parameters are those of `datetime.timedelta`: `expires_after(hours=12)`.
    """
    import datetime

    delta = datetime.timedelta(days, seconds, microseconds, milliseconds, minutes, hours, weeks)

    def is_young(metadata: Mapping[str, Any]) -> bool:
        return bool(time.time() - metadata["time"] < delta.total_seconds())

    return is_young


class Memory(Logger):
    """Keeps results of functions in a folder, across calls and processes.

    Parameters
    ----------
    location : str, path or None
        Folder for the results; None keeps nothing and only calls the functions.
    backend : str
        `local`, or a name that `register_store_backend` made known.
    mmap_mode : {None, 'r', 'r+', 'w+', 'c'}
        How arrays of results are mapped from their files; None gives writable private arrays, large ones
        mapped copy-on-write.
    compress : bool, int, str or tuple
        As in `dump`; what is compressed cannot be mapped.
    verbose : int
        1 prints calls, more prints hits, too; 0 nothing.
    backend_options : dict, optional
        For the backend.

    Examples
    --------
    >>> memory = Memory("folder", verbose=0)
    >>> @memory.cache
    ... def square(x):
    ...     return x * x
    """

    def __init__(
        self,
        location: object = None,
        backend: str = "local",
        mmap_mode: str | None = None,
        compress: object = False,
        verbose: int = 1,
        backend_options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self._verbose = verbose
        self.mmap_mode = mmap_mode
        self.timestamp = time.time()
        self.backend_options = dict(backend_options or {})
        self.backend = backend
        self.compress = compress
        if compress and mmap_mode is not None:
            warnings.warn("Compressed results cannot be memmapped", stacklevel=2)
        self.location = location
        self.store_backend = open_results(
            location, backend, mmap_mode, compress, self.backend_options, verbose
        )
        if self.store_backend is not None:
            self.store_backend.prepare()

    def cache(
        self,
        func: Callable[..., Any] | None = None,
        ignore: Sequence[str] | None = None,
        verbose: int | None = None,
        mmap_mode: str | bool | None = False,
        cache_validation_callback: Callable[[dict[str, Any]], Any] | None = None,
    ) -> Any:
        """A version of the function that keeps its results; also a decorator, with or without arguments.

        Parameters
        ----------
        func : callable
            The function, coroutine function or method.
        ignore : list of str, optional
            Parameters that do not count.
        verbose : int, optional
            In place of that of the `Memory`.
        mmap_mode : str or None, optional
            In place of that of the `Memory`.
        cache_validation_callback : callable, optional
            Is given `duration`, `time` and `input_args` of a stored result and says whether it still counts.
        """
        if cache_validation_callback is not None and not callable(cache_validation_callback):
            raise ValueError(
                f"cache_validation_callback needs to be callable. Got {cache_validation_callback}."
            )
        if func is None:
            return functools.partial(
                self.cache,
                ignore=ignore,
                verbose=verbose,
                mmap_mode=mmap_mode,
                cache_validation_callback=cache_validation_callback,
            )
        if isinstance(func, MemorizedFunc):
            func = func.func
        is_async = is_coroutine_function(func)
        if self.store_backend is None:
            return AsyncNotMemorizedFunc(func) if is_async else NotMemorizedFunc(func)
        kind = AsyncMemorizedFunc if is_async else MemorizedFunc
        mode = self.mmap_mode if mmap_mode is False else mmap_mode
        return kind(
            func,
            location=self.store_backend,
            backend=self.backend,
            ignore=ignore,
            mmap_mode=mode,  # type: ignore[arg-type]  # True is refused when it is used
            compress=self.compress,
            verbose=self._verbose if verbose is None else verbose,
            timestamp=self.timestamp,
            cache_validation_callback=cache_validation_callback,
        )

    def clear(self, warn: bool = True) -> None:
        """Remove all results; unless `warn` is False, a warning says so."""
        if self.store_backend is None:
            return
        if warn:
            self.warn("Flushing completely the cache")
        self.store_backend.clear()

    def reduce_size(
        self,
        bytes_limit: int | str | None = None,
        items_limit: int | None = None,
        age_limit: datetime.timedelta | None = None,
    ) -> None:
        """Remove the results that were not used for longest until all limits hold.

        Parameters
        ----------
        bytes_limit : int or str, optional
            Bytes to keep, `500K`, `2G` in powers of 1024.
        items_limit : int, optional
            How many results to keep.
        age_limit : timedelta, optional
            Results unused for longer go.
        """
        if age_limit is not None and age_limit.total_seconds() < 0:
            raise ValueError("age_limit has to be a positive timedelta")
        if self.store_backend is None or (bytes_limit is None and items_limit is None and age_limit is None):
            return
        size = memstr_to_bytes(bytes_limit) if isinstance(bytes_limit, str) else bytes_limit
        oldest = None if age_limit is None else age_limit.total_seconds()
        self.store_backend.reduce(size, items_limit, oldest)

    def eval(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function through the cache."""
        if self.store_backend is None:
            return func(*args, **kwargs)
        return self.cache(func)(*args, **kwargs)

    def __repr__(self) -> str:
        location = None if self.store_backend is None else self.store_backend.location
        return f"{type(self).__name__}(location={location})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "timestamp": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.timestamp = time.time()


KINDS[Memory] = PartsKind(b"memory", lambda memory: ())
