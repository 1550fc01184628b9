"""Functions that keep their results: found again by the function's code and its arguments.

The key of a result is made of the digest of the function with all that its code reaches, and of the digest of
the arguments by parameter, so versions of a function lie side by side. What a run was seen to ask of files
and environment is kept with the result, which counts as long as the answers are the same.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import blake3

from ipyparcache.digest.calls import (
    FunctionDigest,
    Parameters,
    are_plain,
    bytes_of_primitives,
    digest_of_arguments,
    digest_of_primitives,
    note_again,
)
from ipyparcache.digest.containers import PartsKind
from ipyparcache.digest.walk import KINDS, PRIMITIVES
from ipyparcache.errors import DamagedEntry, StoreUnavailable, Undigestible, Unrepeatable
from ipyparcache.logger import Logger, format_time
from ipyparcache.results import (
    MISSING,
    MemorizedResult,
    NotMemorizedResult,
    metadata_of,
    name_of,
    open_results,
    print_loading,
)
from ipyparcache.storage.entry import Entry

if TYPE_CHECKING:
    from ipyparcache.digest.openfiles import Seen

# What a hit does not need is imported where it is used: half of the time to the first one is imports.

_T = TypeVar("_T")

_QUICK_SECONDS = 1e-3
"""A function that ran no longer than this is computed by whoever needs it: a lock costs as much."""

_KEYS_COUNT = 65536
"""Calls of one function whose keys are kept at hand."""


class CacheWarning(UserWarning):
    """A result was not stored, or not found for a reason that its owner should know."""


class NotMemorizedFunc:
    """A function that is not cached, with the interface of `MemorizedFunc`."""

    def __init__(self, func: Callable[..., Any]):
        self.func = func

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.func(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """As a method of a class."""
        return self if instance is None else types.MethodType(self, instance)

    def call_and_shelve(self, *args: Any, **kwargs: Any) -> NotMemorizedResult:
        """Call the function; the value in a `NotMemorizedResult`."""
        return NotMemorizedResult(self.func(*args, **kwargs))

    def call(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Call the function; the value and no metadata."""
        return self.func(*args, **kwargs), {}

    def clear(self, warn: bool = True) -> None:
        """There is nothing to clear."""

    def check_call_in_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Whether the call is in the cache: never."""
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(func={self.func})"


class AsyncNotMemorizedFunc(NotMemorizedFunc):
    """The same for a coroutine function."""

    async def call_and_shelve(self, *args: Any, **kwargs: Any) -> NotMemorizedResult:  # type: ignore[override]
        """Await the function; the value in a `NotMemorizedResult`."""
        return NotMemorizedResult(await self.func(*args, **kwargs))

    async def call(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:  # type: ignore[override]
        """Await the function; the value and no metadata."""
        return await self.func(*args, **kwargs), {}


class MemorizedFunc(Logger):
    """A function whose results are kept; made by `Memory.cache`.

    Parameters
    ----------
    func : callable
        The function.
    location : str, path or ResultStore
        Folder for the results.
    ignore : list of str, optional
        Parameters that do not count, `*` and `**` too.
    mmap_mode : str, optional
        How arrays of results are mapped; None gives private writable ones. What is written into an `r+` map
        stays private all the same, as an entry never changes.
    compress : bool, int, str or tuple
        As in `dump`.
    verbose : int
        1 prints calls, more prints hits, too.
    cache_validation_callback : callable, optional
        Is given `duration`, `time` and `input_args` of a stored result and says whether it still counts.
    """

    # Worked out anew where it is unpickled, so not in `vars`.
    __slots__ = ("_digest", "_keys", "_parameters", "_seconds")

    def __init__(
        self,
        func: Callable[..., Any],
        location: object,
        backend: str = "local",
        ignore: Sequence[str] | None = None,
        mmap_mode: str | None = None,
        compress: object = False,
        verbose: int = 1,
        timestamp: float | None = None,
        cache_validation_callback: Callable[[dict[str, Any]], Any] | None = None,
    ):
        super().__init__()
        if cache_validation_callback is not None and not callable(cache_validation_callback):
            raise ValueError(
                f"cache_validation_callback needs to be callable. Got {cache_validation_callback}."
            )
        self.mmap_mode = mmap_mode
        self.compress = compress
        self.func = func
        self.ignore = [] if ignore is None else ignore
        self.cache_validation_callback = cache_validation_callback
        self._verbose = verbose
        results = open_results(location, backend, mmap_mode, compress)
        if results is None:
            raise TypeError(f"{location!r} is no place for results")
        self.store_backend = results
        self.timestamp = time.time() if timestamp is None else timestamp
        self._frozen: bytes | None = None
        self._set_up()
        results.prepare()
        with contextlib.suppress(AttributeError):
            functools.update_wrapper(self, func)
        self.__doc__ = f"Memoized version of {self.func_id}\n\n{_doc_of(func)}"

    def _set_up(self) -> None:
        """What is worked out from the function, and not pickled."""
        func = self.func
        self._bound: tuple[Any, ...] = ()
        target: Any = func
        if isinstance(func, types.MethodType):
            self._bound = (func.__self__,)
            target = func.__func__
        elif isinstance(func, staticmethod):
            target = func.__func__
        self.func_id = name_of(func)
        self._target = target
        self._prefix = blake3.blake3(self.func_id.encode("utf-8", "surrogatepass")).hexdigest(8)
        self._digest = FunctionDigest(target)
        self._parameters: Parameters | None = None
        self._keys: dict[tuple[bytes, bytes], str] = {}
        self._seconds = float("inf")  # of the last run, once there was one

    @property
    def func_code_info(self) -> tuple[str, str | None, int]:
        """Source, file and first line of the function."""
        import inspect

        from ipyparcache.func_inspect import get_func_code

        return get_func_code(inspect.unwrap(self._target))

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """As a method of a class: the instance becomes the first argument."""
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result of the call, stored or computed."""
        is_quick = self._verbose <= 1 and self.cache_validation_callback is None and self.mmap_mode is None
        try:
            call = self._primitive_call(args) if is_quick and not kwargs else None
            known = None if call is None else self._keys.get(call)
            if known is not None:
                value = self._quick(known)
                if value is not MISSING:
                    return value
            key = self._key(args, kwargs)[0] if call is None else self._key_of_primitives(*call)
        except Undigestible as error:
            return self._call_uncached(error, args, kwargs)
        if is_quick:
            value = self._quick(key)
            if value is not MISSING:
                return value
        value = self._stored(key)
        if value is not MISSING:
            return value
        bound = self._bind(args, kwargs)
        if self._seconds < _QUICK_SECONDS:
            return self._compute(key, bound, args, kwargs)[0]
        with self._single_flight(key):
            value = self._stored(key)  # it may have come since we looked
            if value is not MISSING:
                return value
            return self._compute(key, bound, args, kwargs)[0]

    def call(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Run the function and store the result; the value and metadata."""
        key, bound = self._key(args, kwargs)
        value, metadata, _ = self._compute(key, bound, args, kwargs)
        return value, metadata

    def call_and_shelve(self, *args: Any, **kwargs: Any) -> MemorizedResult | NotMemorizedResult:
        """A reference to the result of the call, stored or computed."""
        key, bound = self._key(args, kwargs)
        entry = self._found(key)
        if entry is not None:
            return self._reference(entry.name, metadata_of(entry))
        value, metadata, name = self._compute(key, bound, args, kwargs)
        return NotMemorizedResult(value) if name is None else self._reference(name, metadata)

    def check_call_in_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a result of the call is stored and counts."""
        return self._found(self._key(args, kwargs)[0]) is not None

    def clear(self, warn: bool = True) -> None:
        """Remove all results of this function, of its earlier versions too."""
        if self._verbose > 0 and warn:
            self.warn(f"Clearing function cache identified by {self.func_id}")
        self.store_backend.remove_under(self._prefix)

    # ---- keys

    def _get_args_id(self, *args: Any, **kwargs: Any) -> str:
        """What names the result of a call in `store_backend`, for programs that remove or look at one."""
        return self._key(args, kwargs)[0]

    def _get_output_identifiers(self, *args: Any, **kwargs: Any) -> tuple[str, str]:
        """The same with the name of the function, as older programs ask for it."""
        return self.func_id, self._get_args_id(*args, **kwargs)

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        parameters = self._parameters
        if parameters is None:
            if isinstance(self.ignore, str):
                raise ValueError(
                    f"ignore_lst must be a list of parameters to ignore, {self.ignore!r} is a str"
                )
            parameters = self._parameters = Parameters(self._target, self._short_name, self.ignore)
        return parameters.bind(self._bound + args if self._bound else args, kwargs)

    def _key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, list[tuple[str, Any]]]:
        bound = self._bind(args, kwargs)
        code = self._frozen or self._digest.now()
        return self._prefix + blake3.blake3(code + digest_of_arguments(bound)).hexdigest(12), bound

    def _key_of_primitives(self, code: bytes, told: bytes) -> str:
        assert self._parameters is not None
        digest = digest_of_primitives(self._parameters.names or (), told)
        key = self._keys[code, told] = self._prefix + blake3.blake3(code + digest).hexdigest(12)
        if len(self._keys) > _KEYS_COUNT:
            self._keys.clear()
        return key

    def _primitive_call(self, args: tuple[Any, ...]) -> tuple[bytes, bytes] | None:
        """What tells a call with numbers, strings and the like from all others, without hashing."""
        if self._parameters is None:
            return None
        values = self._parameters.filled(self._bound + args if self._bound else args)
        told = None if values is None else bytes_of_primitives(values)
        return None if told is None else (self._frozen or self._digest.now(), told)

    # ---- stored results

    def _quick(self, key: str) -> Any:
        try:
            return self.store_backend.quick(key)
        except StoreUnavailable:  # `_stored` asks again, and tells
            return MISSING

    def _found(self, key: str) -> Entry | None:
        """The entry of a key if it counts; an entry that the callback refuses is removed."""
        entry = self._attempt(lambda: self.store_backend.find(key), None)
        if entry is None:
            self._say_complaints()
        if entry is None or self.cache_validation_callback is None:
            return entry
        if self.cache_validation_callback(metadata_of(entry)):
            return entry
        self.store_backend.entries.delete(entry)
        return None

    def _stored(self, key: str) -> Any:
        started = time.perf_counter()
        entry = self._found(key)
        if entry is None:
            return MISSING
        if self._verbose > 1:
            where = self.store_backend.location if self._verbose < 10 else entry.file() or ""
            print_loading(self._short_name, self.timestamp, self._verbose, where)
        value = self._read(entry)
        if value is MISSING:
            return value
        if self._verbose > 4:
            self._print_duration(time.perf_counter() - started, "cache loaded ")
        entry.used()
        rows = entry.manifest.get("rows")
        if rows:
            note_again(rows)
        return value

    def _read(self, entry: Entry) -> Any:
        try:
            return self.store_backend.read(entry, _mapping(self.mmap_mode))
        except DamagedEntry:
            self._say_complaints()
        except (
            Exception
        ):  # unpickling runs code of the user's, which may fail with anything: then it is a miss
            import traceback

            self.warn(f"Exception while loading results for {self.func_id}\n {traceback.format_exc()}")
        return MISSING

    def _say_complaints(self) -> None:
        """Tell of what was found damaged; such a result is a miss."""
        none: list[str] = []
        for complaint in self._attempt(lambda: self.store_backend.entries.take_complaints(), none):
            self.warn(f"Exception while loading results for {self.func_id}: {complaint}")

    def _reference(self, name: str, metadata: Mapping[str, Any]) -> MemorizedResult:
        return MemorizedResult(
            self.store_backend,
            self.func_id,
            name,
            mmap_mode=_mapping(self.mmap_mode),
            verbose=self._verbose - 1,
            timestamp=self.timestamp,
            metadata=metadata,
        )

    # ---- running

    @contextlib.contextmanager
    def _single_flight(self, key: str) -> Iterator[None]:
        """Be the only one who computes a key."""
        try:
            entries = self.store_backend.entries
        except StoreUnavailable:
            yield
            return
        with entries.lock(key):
            yield

    def _compute(
        self, key: str, bound: list[tuple[str, Any]], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any], str | None]:
        """Run and store; the value, metadata, and the name of the entry if it was stored."""
        run = self._begin(args, kwargs)
        needs_watch = self._frozen is not None or not (self._digest.is_quiet and are_plain(bound))
        if needs_watch:
            from ipyparcache.digest import openfiles

            with openfiles.watch() as seen:
                value = self.func(*args, **kwargs)
                seconds = time.perf_counter() - run
        else:
            seen = None
            value = self.func(*args, **kwargs)
            seconds = time.perf_counter() - run
        return self._finish(key, bound, value, seen, seconds)

    def _begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        if self._verbose >= 20:
            import logging

            logging.basicConfig(level=logging.INFO)
            self.info(
                f"Querying {self.func_id} with signature\n    {self._call_text(args, kwargs)}.\n\n"
                f"The store location is {self.store_backend.location}."
            )
        if self._verbose > 0:
            from ipyparcache.func_inspect import call_lines, full_name

            print(call_lines("Memory", full_name(self.func), self._call_text(args, kwargs)))
        return time.perf_counter()

    @property
    def _short_name(self) -> str:
        return self.func_id.rpartition(".")[2]

    def _print_duration(self, seconds: float, what: str = "") -> None:
        said = f"{self._short_name} {what}- {format_time(seconds)}"
        print(max(0, 80 - len(said)) * "_" + said)

    def _finish(
        self,
        key: str,
        bound: list[tuple[str, Any]],
        value: Any,
        seen: Seen | None,
        seconds: float,
    ) -> tuple[Any, dict[str, Any], str | None]:
        self._seconds = seconds
        if self._verbose > 0:
            self._print_duration(seconds)
        arguments = {name: _short(argument) for name, argument in bound}
        metadata: dict[str, Any] = {"duration": seconds, "time": time.time(), "input_args": arguments}
        rows: list[list[Any]] = []
        try:
            if seen is not None:
                from ipyparcache.digest import environment

                observed = environment.observed_rows(seen, trust_shell=True, logs=False)
                rows = [list(row) for row in observed if row[0] != "random"]
            own_file = self.mmap_mode is not None
            name = self.store_backend.write(key, self.func_id, arguments, rows, value, seconds, own_file)
        except StoreUnavailable as error:
            self._warn_once(f"the results of {self.func_id} are not stored: {error}")
            return value, metadata, None
        except Unrepeatable as error:
            self._warn_once(f"the result of {self.func_id} is not stored: {error}")
            return value, metadata, None
        except Exception as error:  # pickling runs code of the user's, which may fail with anything
            warnings.warn(
                f"the result of {self.func_id} cannot be pickled and is not stored: {error}",
                CacheWarning,
                stacklevel=4,
            )
            return value, metadata, None
        if self.mmap_mode is not None:
            entry = self._attempt(lambda: self.store_backend.find(key), None)
            if entry is not None:
                back = self._read(entry)
                value = value if back is MISSING else back
        return value, metadata, name

    def _call_uncached(self, error: Undigestible, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self._warn_once(
            f"a call of {self.func_id} is not cached: {error}; leave the argument out with "
            "ignore=[...] if it does not matter"
        )
        return self.func(*args, **kwargs)

    def _attempt(self, step: Callable[[], _T], otherwise: _T) -> _T:
        """What the step gives; a store that cannot be used is told once."""
        try:
            return step()
        except StoreUnavailable as error:
            self._warn_once(f"the results of {self.func_id} are not stored: {error}")
            return otherwise

    def _warn_once(self, text: str) -> None:
        if text not in _warned:
            _warned.add(text)
            warnings.warn(text, CacheWarning, stacklevel=4)

    def _call_text(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        from ipyparcache.func_inspect import call_text

        return call_text(self._short_name, args, kwargs)

    # ---- pickling

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        for name in ("_bound", "_target", "_prefix", "func_id"):
            state.pop(name, None)
        if _travels_by_value(self._target):
            # On a worker the function has other globals around it; what counts is what was sent.
            with contextlib.suppress(Undigestible):
                state["_frozen"] = self._frozen or self._digest.now()
                state["_sent_by"] = os.getpid()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_up()
        if state.get("_sent_by") == os.getpid():
            self._frozen = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(func={self.func}, location={self.store_backend.location})"


class AsyncMemorizedFunc(MemorizedFunc):
    """The same for a coroutine function: to be awaited."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result of the call, stored or computed."""
        try:
            key, bound = self._key(args, kwargs)
        except Undigestible as error:
            return await self._call_uncached(error, args, kwargs)
        value = self._stored(key)
        if value is not MISSING:
            return value
        return (await self._compute_async(key, bound, args, kwargs))[0]

    async def call(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:  # type: ignore[override]
        """Run the function and store the result; the value and metadata."""
        key, bound = self._key(args, kwargs)
        value, metadata, _ = await self._compute_async(key, bound, args, kwargs)
        return value, metadata

    async def call_and_shelve(self, *args: Any, **kwargs: Any) -> MemorizedResult | NotMemorizedResult:  # type: ignore[override]
        """A reference to the result of the call, stored or computed."""
        key, bound = self._key(args, kwargs)
        entry = self._found(key)
        if entry is not None:
            return self._reference(entry.name, metadata_of(entry))
        value, metadata, name = await self._compute_async(key, bound, args, kwargs)
        return NotMemorizedResult(value) if name is None else self._reference(name, metadata)

    async def _compute_async(
        self, key: str, bound: list[tuple[str, Any]], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any], str | None]:
        from ipyparcache.digest import openfiles

        run = self._begin(args, kwargs)
        with openfiles.watch() as seen:
            value = await self.func(*args, **kwargs)
        return self._finish(key, bound, value, seen, time.perf_counter() - run)


_warned: set[str] = set()


def _doc_of(func: Any) -> str:
    if type(func) is types.FunctionType and func.__doc__ is None and "." not in func.__qualname__:
        return ""
    import inspect

    return inspect.getdoc(func) or ""


def is_coroutine_function(func: Any) -> bool:
    """Whether calls of it are to be awaited."""
    if type(func) is types.FunctionType and not func.__dict__:
        return bool(func.__code__.co_flags & _COROUTINE)
    import inspect

    return inspect.iscoroutinefunction(func)


_COROUTINE = 0x80  # `inspect.CO_COROUTINE`


def _mapping(mmap_mode: str | None) -> str | None:
    """How an entry is mapped: writing into it stays private, since an entry never changes."""
    return "c" if mmap_mode in ("r+", "w+") else mmap_mode


def _travels_by_value(func: object) -> bool:
    """Whether a worker gets the code of the function, and does not import it."""
    name = getattr(func, "__qualname__", "")
    module = sys.modules.get(getattr(func, "__module__", None) or "")
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    found = getattr(found, "func", found)
    return found is not func or getattr(func, "__module__", "") == "__main__"


def _short(value: object) -> str:
    """A few characters for a value in the metadata."""
    if type(value) in PRIMITIVES:
        return repr(value)[:200]
    if isinstance(value, list | tuple | dict | set | frozenset) and len(value) > 20:
        return f"<{type(value).__name__} of {len(value)}>"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and getattr(value, "size", 0) > 20:
        return f"<{type(value).__name__} {shape}>"
    try:
        return repr(value)[:200]
    except Exception:  # a value that cannot show itself
        return f"<{type(value).__name__}>"


# What a function reaches through a cached one is that one's code, not where its results lie.
KINDS[MemorizedFunc] = KINDS[AsyncMemorizedFunc] = PartsKind(
    b"memorized", lambda memorized: (memorized.func, tuple(sorted(memorized.ignore)))
)
KINDS[NotMemorizedFunc] = KINDS[AsyncNotMemorizedFunc] = PartsKind(
    b"not memorized", lambda plain: (plain.func,)
)
