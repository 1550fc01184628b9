"""The stored results of one `Memory`: where they lie, how they come back, which are kept at hand."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import time
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import blake3

from ipyparcache.digest.walk import PRIMITIVES
from ipyparcache.errors import DamagedEntry, StoreUnavailable
from ipyparcache.logger import Logger, format_time
from ipyparcache.storage.entry import Entries, Entry, entries_over, open_entries
from ipyparcache.storage.eviction import names_beyond
from ipyparcache.storage.store import STORE_BACKENDS, StoreBackendBase

if TYPE_CHECKING:
    import datetime

MISSING: Any = object()
"""Stands for no result, as None may be one."""

_quoted = json.encoder.encode_basestring_ascii

_QUICK_BYTES = 4096
_QUICK_TOTAL = 32 << 20
"""Results up to this size, and so many bytes of them, are kept in memory: their hits read nothing."""

_QUICK_OVERHEAD = 500
"""Bytes that one of them takes besides its pickle."""


class CacheItem(NamedTuple):
    """One stored result as `store_backend.get_items` lists it."""

    path: str
    size: int
    last_access: datetime.datetime


class ResultStore:
    """The stored results of one `Memory`: where they lie and how they come back."""

    # The latter stay here when it is pickled.
    __slots__ = ("__dict__", "__weakref__", "_entries", "_made", "_quick", "_quick_bytes")

    def __init__(
        self,
        location: str,
        backend: str | StoreBackendBase = "local",
        mmap_mode: str | None = None,
        codec: tuple[str, int | None] | None = None,
        options: Mapping[str, Any] | None = None,
        verbose: int = 0,
    ):
        self.location = location
        self.mmap_mode = mmap_mode
        self.codec = codec
        self._backend = backend
        self._options = dict(options or {})
        self._verbose = verbose
        self._entries: Entries | None = None
        self._made: StoreBackendBase | None = None
        self._quick: dict[str, tuple[str, object, bytes | None, object, float]] = {}
        self._quick_bytes = 0

    @property
    def entries(self) -> Entries:
        """The entries below, opened when first needed.

        Raises
        ------
        StoreUnavailable
            If there is no signing key.
        """
        if self._entries is None:
            if self._backend == "local":
                self._entries = open_entries(self.location)
            else:
                self._entries = entries_over(self._made_backend(), self.location)
        return self._entries

    def _made_backend(self) -> StoreBackendBase:
        """The backend of somebody else, set up."""
        if self._made is None:
            backend = self._backend
            if isinstance(backend, str):
                backend = STORE_BACKENDS[backend]()
                options = {"compress": self.codec or False, "mmap_mode": self.mmap_mode, **self._options}
                backend.configure(self.location, verbose=self._verbose, backend_options=options)
            self._made = backend
        return self._made

    def prepare(self) -> None:
        """Set the backend up; make the folder, and have version control leave it alone."""
        if self._backend != "local":
            self._made_backend()
            return
        with contextlib.suppress(OSError):
            os.makedirs(self.location, exist_ok=True)
            ignore = os.path.join(os.path.dirname(self.location), ".gitignore")
            if not os.path.exists(ignore):
                with open(ignore, "x", encoding="utf-8") as file:
                    file.write("# Created by ipyparcache automatically.\n*\n")

    def find(self, key: str) -> Entry | None:
        """The newest entry whose every observed answer is the same now."""
        for entry in self.entries.under(key):
            rows = entry.manifest.get("rows")
            if not rows or _still_hold(rows):
                return entry
        return None

    def quick(self, key: str) -> Any:
        """A small result that this process has seen before and that is still there; `MISSING` if not."""
        known = self._quick.get(key)
        if known is None:
            return MISSING
        name, token, pickled, value, seconds = known
        entries = self.entries
        if entries.store.token(name) is not token:
            self._quick.pop(key, None)
            return MISSING
        entries.ledger.note_use(name, seconds)
        return value if pickled is None else pickle.loads(pickled)

    def read(self, entry: Entry, mmap_mode: str | None) -> Any:
        """The value of an entry.

        Raises
        ------
        DamagedEntry
            If it is damaged; it has been set aside then.
        """
        pickled, buffers = entry.payload()
        if not buffers:
            rows = entry.manifest.get("rows")
            value = pickle.loads(pickled)
            if len(pickled) <= _QUICK_BYTES and not rows:
                self._remember(entry, bytes(pickled), value)
            return value
        path = entry.file(unpack=True) if mmap_mode is not None else None

        def array(index: int, dtype: Any, shape: tuple[int, ...], order: Any, writable: bool) -> Any:
            import numpy as np

            size = len(buffers[index])
            if path is not None and size:
                where = entry.buffer_offset(index)
                mode: Any = mmap_mode
                return np.memmap(path, dtype=dtype, mode=mode, offset=where, shape=shape, order=order)
            plain = np.frombuffer(buffers[index], np.uint8) if size else np.empty(0, np.uint8)
            made = (plain.view(dtype) if size else np.empty(0, dtype)).reshape(shape, order=order)
            if not writable:
                made.flags.writeable = False
            return made

        from ipyparcache.storage import fileformat

        return fileformat.put_together(pickled, array)

    def _forget_quick(self) -> None:
        self._quick.clear()
        self._quick_bytes = 0

    def _remember(self, entry: Entry, pickled: bytes, value: object) -> None:
        token = entry.store_token()
        if token is None:
            return
        if entry.key not in self._quick:
            self._quick_bytes += len(pickled) + _QUICK_OVERHEAD
        own = None if type(value) in PRIMITIVES else pickled  # a primitive is as good as a copy of it
        self._quick[entry.key] = entry.name, token, own, value if own is None else None, entry.seconds
        if self._quick_bytes > _QUICK_TOTAL:
            self._forget_quick()

    def write(
        self,
        key: str,
        func: str,
        arguments: Mapping[str, str],
        rows: Sequence[Sequence[Any]],
        value: Any,
        seconds: float,
        own_file: bool,
    ) -> str:
        """Store a value; the name of its entry.

        `arguments` are for people to read, `rows` what the run was seen to ask.

        Raises
        ------
        StoreUnavailable
            If it cannot be stored.
        """
        from ipyparcache.storage import fileformat

        pickled, arrays = fileformat.take_apart(value)
        trace = blake3.blake3(repr(rows).encode()).hexdigest(8) if rows else "0"
        raws = [fileformat.raw_bytes(array) for array in arrays]
        manifest = _manifest(func, arguments, rows)
        self.entries.write(
            key, trace, manifest, pickled, raws, seconds=seconds, codec=self.codec, own_file=own_file
        )
        return f"{key}.{trace}"

    def remove_under(self, prefix: str) -> None:
        """Remove the results whose key begins so; errors as from `remove`."""
        store = self.entries.store
        self.remove([item.name for item in store.items() if item.name.startswith(prefix)])
        store.clear_under(prefix)

    def remove(self, names: list[str]) -> None:
        """Remove these results.

        Raises
        ------
        StoreUnavailable
            If some of them cannot be removed.
        """
        began = time.time()
        if self.entries.remove(names) < len(names):
            self._see_to_it_that_none_is_left(began, set(names))

    def _see_to_it_that_none_is_left(self, began: float, names: set[str] | None) -> None:
        """An error if one of the results, all of them without `names`, cannot be removed."""

        def left() -> set[tuple[str, float]]:
            return {
                (item.name, item.modified)
                for item in self.entries.store.items()
                if item.modified < began and (names is None or item.name in names)
            }

        # What is there may also have come from a process that began to write it earlier.
        seen = left()
        if seen:
            self.entries.remove([name for name, _ in seen])
            stuck = len(seen & left())
            if stuck:
                place = self.entries.store.location
                raise StoreUnavailable(place, f"not all results could be removed, {stuck:,} are left")

    def entry_of(self, call_id: Sequence[str]) -> Entry | None:
        """The entry of a call, named as `MemorizedResult` or joblib name one: function, and which result."""
        key, _, trace = call_id[-1].partition(".")
        for entry in self.entries.under(key):
            if not trace or entry.trace == trace:
                return entry
        return None

    def contains_item(self, call_id: Sequence[str]) -> bool:
        """Whether the result of a call is stored."""
        return self.entry_of(call_id) is not None

    def load_item(self, call_id: Sequence[str]) -> Any:
        """The result of a call.

        Raises
        ------
        KeyError
            If it is not stored.
        """
        entry = self.entry_of(call_id)
        if entry is None:
            raise KeyError(f"Non-existing item (may have been cleared): {call_id[-1]}")
        return self.read(entry, self.mmap_mode)

    def clear_item(self, call_id: Sequence[str]) -> None:
        """Remove the result of a call, if it is stored."""
        key, _, trace = call_id[-1].partition(".")
        self.remove([entry.name for entry in self.entries.under(key) if trace in ("", entry.trace)])

    def get_metadata(self, call_id: Sequence[str]) -> dict[str, Any]:
        """What is known of the run of a call; nothing if it is not stored."""
        entry = self.entry_of(call_id)
        return {} if entry is None else metadata_of(entry)

    def get_items(self) -> list[CacheItem]:
        """All results with their sizes and last uses."""
        import datetime

        return [
            CacheItem(
                os.path.join(self.location, name),
                size,
                datetime.datetime.fromtimestamp(last_use),
            )
            for last_use, name, size in self.entries.last_uses()
        ]

    def clear(self) -> None:
        """Remove all results; errors as from `remove`."""
        began = time.time()
        self._forget_quick()
        self.entries.wipe()
        self._see_to_it_that_none_is_left(began, None)

    def reduce(self, bytes_limit: int | None, items_limit: int | None, oldest: float | None) -> None:
        """Remove the results unused for longest until all limits hold; errors as from `remove`."""
        entries = self.entries
        uses = entries.last_uses()
        self.remove(
            names_beyond(uses, time.time(), most_bytes=bytes_limit, most_items=items_limit, oldest=oldest)
        )

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._entries = self._made = None
        self._quick = {}
        self._quick_bytes = 0


def open_results(
    location: object,
    backend: str,
    mmap_mode: str | None,
    compress: object,
    options: Mapping[str, Any] | None = None,
    verbose: int = 0,
) -> ResultStore | None:
    """The results at a location that a user gave; None for no caching.

    Raises
    ------
    TypeError
        If the backend is not known.
    ValueError
        If `compress` is none of the ways that `dump` knows.
    """
    codec = None
    if compress:
        from ipyparcache.storage.compression import parse_codec

        codec = parse_codec(compress)
    if location is None:
        return None
    if isinstance(location, ResultStore):
        return location
    if isinstance(location, StoreBackendBase):
        return ResultStore(str(location.location), location, mmap_mode, codec, options, verbose)
    if not isinstance(location, str | Path):
        warnings.warn(
            f"Instantiating a backend using a {type(location).__qualname__} as a location is not supported "
            "by joblib, nor here: nothing is kept.",
            UserWarning,
            stacklevel=3,
        )
        return None
    if backend != "local" and backend not in STORE_BACKENDS:
        raise TypeError(f"Unknown location {location} or backend {backend}")
    folder = os.path.expanduser(os.fspath(location))
    return ResultStore(os.path.join(folder, "joblib"), backend, mmap_mode, codec, options, verbose)


def print_loading(what: str, since: float, verbose: int, where: str) -> None:
    """The line that tells that a result is read."""
    end = "..." if verbose < 10 else f" from {where}"
    print(f"[Memory]{format_time(time.time() - since):<16}: Loading {what}{end}")


class MemorizedResult(Logger):
    """A stored result, by reference: small to pickle and send, its value read by `get`.

    Parameters
    ----------
    location : str
        Folder of the results, as `repr` shows it.
    func : str, callable or tuple
        The function, for `repr`; or both it and the next in one tuple.
    args_id : str
        Which result.
    backend, mmap_mode, verbose
        As those of `Memory`.
    timestamp : float, optional
        When the reference was made; now, if not given.
    metadata : mapping, optional
        What is known of the run; read with the result, if not given.
    """

    def __init__(
        self,
        location: str | ResultStore,
        func: object,
        args_id: str | None = None,
        backend: str = "local",
        mmap_mode: str | None = None,
        verbose: int = 0,
        timestamp: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if isinstance(location, ResultStore):
            self.store_backend = location
        else:
            self.store_backend = ResultStore(os.path.expanduser(location), backend, mmap_mode)
        if args_id is None:
            if not isinstance(func, tuple):
                raise TypeError("MemorizedResult needs to be told which result it is: args_id is missing")
            func, args_id = func
        self.func = func if isinstance(func, str) else name_of(func)
        self.args_id = str(args_id)
        self.mmap_mode = mmap_mode
        self.verbose = verbose
        self.timestamp = time.time() if timestamp is None else timestamp
        self._metadata = dict(metadata) if metadata is not None else None

    @property
    def func_id(self) -> str:
        """Full name of the function."""
        return self.func

    @property
    def _call_id(self) -> tuple[str, str]:
        """Function and result, as programs hand them from one `MemorizedResult` to the next."""
        return self.func, self.args_id

    @property
    def metadata(self) -> dict[str, Any]:
        """What is known of the run: `duration`, `time`, `input_args`."""
        if self._metadata is None:
            entry = self._entry()
            self._metadata = metadata_of(entry) if entry is not None else {}
        return self._metadata

    @property
    def duration(self) -> float | None:
        """Seconds that the run took."""
        return self.metadata.get("duration")

    def get(self) -> Any:
        """The value.

        Raises
        ------
        KeyError
            If it was cleared, evicted or damaged.
        """
        entry = self._entry()
        if entry is None:
            raise KeyError(f"The result {self!r} is not in the store: it was cleared, or is corrupted.")
        if self.verbose > 1:
            told = ", ".join(f"{name}={text}" for name, text in self.metadata.get("input_args", {}).items())
            call = f"{self.func.rpartition('.')[2]}({told})"
            print_loading(call, self.timestamp, self.verbose, self.store_backend.location)
        try:
            return self.store_backend.read(entry, self.mmap_mode)
        except DamagedEntry as error:
            self.store_backend.entries.take_complaints()
            raise KeyError(f"The result {self!r} is corrupted: {error.reason}.") from error

    def clear(self) -> None:
        """Remove the result from the store."""
        self.store_backend.remove([self.args_id])

    def _entry(self) -> Entry | None:
        return self.store_backend.entry_of(self._call_id)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(location="{self.store_backend.location}", func="{self.func}", '
            f'args_id="{self.args_id}")'
        )


class NotMemorizedResult:
    """The value of a call that is not stored, with the interface of `MemorizedResult`."""

    def __init__(self, value: Any):
        self.value = value
        self.valid = True

    def get(self) -> Any:
        """The value; KeyError after `clear`."""
        if not self.valid:
            raise KeyError("No value stored.")
        return self.value

    def clear(self) -> None:
        """Let go of the value."""
        self.valid = False
        self.value = None

    def __repr__(self) -> str:
        if not self.valid:
            return f"{type(self).__name__} with no value"
        return f"{type(self).__name__}({self.value!r})"


def name_of(func: object) -> str:
    """Full name of a function, for people and for telling functions apart in a store."""
    if isinstance(func, functools.partial):
        return name_of(func.func)
    plain = func.__func__ if isinstance(func, types.MethodType) else func
    module = getattr(plain, "__module__", None) or type(func).__module__
    name = getattr(plain, "__qualname__", None) or type(func).__qualname__
    return f"{module}.{name.replace('<locals>.', '')}"


def _still_hold(rows: Sequence[Sequence[Any]]) -> bool:
    from ipyparcache.digest import environment

    return all(map(environment.still_holds, rows))


def _manifest(func: str, arguments: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> bytes:
    # By hand, as this is what most of a small entry's manifest costs.
    told = ",".join([f"{_quoted(name)}:{_quoted(text)}" for name, text in arguments.items()])
    observed = f',"rows":{json.dumps(rows)}' if rows else ""
    return f'{{"func":{_quoted(func)},"input_args":{{{told}}}{observed}}}'.encode()


def metadata_of(entry: Entry) -> dict[str, Any]:
    """What a validation callback is given."""
    return {
        "duration": entry.seconds,
        "time": entry.created,
        "input_args": entry.manifest.get("input_args"),
    }
