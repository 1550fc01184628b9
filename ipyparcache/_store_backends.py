"""What store backends of others derive from and import, where they look for it."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ipyparcache.backports import concurrency_safe_rename
from ipyparcache.disk import memstr_to_bytes, mkdirp, rm_subdirs
from ipyparcache.memorized import CacheWarning
from ipyparcache.results import CacheItem as CacheItemInfo
from ipyparcache.results import print_loading
from ipyparcache.storage.eviction import names_beyond
from ipyparcache.storage.fileformat import dump, load
from ipyparcache.storage.store import StoreBackendBase

__all__ = [
    "CacheItemInfo",
    "CacheWarning",
    "FileSystemStoreBackend",
    "StoreBackendBase",
    "StoreBackendMixin",
    "concurrency_safe_rename",
    "concurrency_safe_write",
    "mkdirp",
    "rm_subdirs",
]

_OUTPUT = "output.pkl"
_METADATA = "metadata.json"
_CODE = "func_code.py"

CallId = Sequence[str]
"""Names of folders, from the location of the backend down: those of a function, and of one of its calls."""

Write = Callable[[Any, str], object]
"""Given what to write, and the name of a file."""


def concurrency_safe_write(object_to_write: Any, filename: str, write_func: Write) -> str:
    """Write beside a file, under a name of this thread's own, from which it is to be moved; that name."""
    aside = f"{filename}.{uuid.uuid4().hex}-process-{os.getpid()}-thread-{threading.get_ident()}"
    write_func(object_to_write, aside)
    return aside


class StoreBackendMixin:
    """Objects by name over the steps of `StoreBackendBase`, for backends whose own methods call these.

    `Memory` calls none of them: it signs what it keeps, and has the backend move bytes (`storage.adapter`).
    """

    location: Any
    verbose: int
    compress: Any = False
    mmap_mode: Any = None
    _open_item: Callable[..., Any]
    _item_exists: Callable[..., Any]
    _move_item: Callable[..., Any]
    clear_location: Callable[..., Any]
    create_location: Callable[..., Any]
    get_items: Callable[..., Any]

    def _path(self, call_id: CallId, *more: str) -> str:
        return os.path.join(self.location, *call_id, *more)

    def load_item(
        self,
        call_id: CallId,
        verbose: int = 1,
        timestamp: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Any:
        """The object of a call.

        Raises
        ------
        KeyError
            If there is none.
        """
        if verbose > 1:
            print_loading(call_id[-1], timestamp or time.time(), verbose, self._path(call_id))
        path = self._path(call_id, _OUTPUT)
        if not self._item_exists(path):
            raise KeyError(f"Non-existing item (may have been cleared): there is no file {path}")
        if self.mmap_mode is not None:
            return load(path, mmap_mode=self.mmap_mode)
        with self._open_item(path, "rb") as file:
            return load(file)

    def dump_item(self, call_id: CallId, item: Any, verbose: int = 1) -> None:
        """Write the object of a call; a warning if that fails."""
        if verbose > 10:
            print(f"Persisting in {self._path(call_id)}")

        def write(value: Any, path: str) -> None:
            with self._open_item(path, "wb") as file:
                dump(value, file, compress=self.compress or 0)

        try:
            self.create_location(self._path(call_id))
            self._concurrency_safe_write(item, self._path(call_id, _OUTPUT), write)
        except pickle.PicklingError as error:
            warnings.warn(f"not stored, as it cannot be pickled: {error}", FutureWarning, stacklevel=2)
        except Exception as error:  # pickling runs code of the user's, which may fail with anything
            warnings.warn(f"not stored: {error}", CacheWarning, stacklevel=2)

    def clear_item(self, call_id: CallId) -> None:
        """Remove the object of a call with what lies beside it."""
        self.clear_path(call_id)

    def contains_item(self, call_id: CallId) -> bool:
        """Whether there is an object of a call."""
        return bool(self._item_exists(self._path(call_id, _OUTPUT)))

    def get_item_info(self, call_id: CallId) -> dict[str, str]:
        """Where the object of a call lies."""
        return {"location": self._path(call_id)}

    def get_metadata(self, call_id: CallId) -> dict[str, Any]:
        """What was stored about a call; nothing if that cannot be read."""
        try:
            with self._open_item(self._path(call_id, _METADATA), "rb") as file:
                return dict(json.loads(file.read().decode()))
        except Exception:  # whatever a backend raises when an item is not there
            return {}

    def store_metadata(self, call_id: CallId, metadata: Mapping[str, Any]) -> None:
        """Write what is to be known about a call."""
        self.create_location(self._path(call_id))
        self._write_bytes(self._path(call_id, _METADATA), json.dumps(dict(metadata)).encode())

    def contains_path(self, call_id: CallId) -> bool:
        """Whether there is a folder of this name."""
        return bool(self._item_exists(self._path(call_id)))

    def clear_path(self, call_id: CallId) -> None:
        """Remove the folder of this name with all that is in it."""
        if self._item_exists(self._path(call_id)):
            self.clear_location(self._path(call_id))

    def store_cached_func_code(self, call_id: CallId, func_code: str | None = None) -> None:
        """Write the source of a function into its folder, or only make that."""
        self.create_location(self._path(call_id))
        if func_code is not None:
            self._write_bytes(self._path(call_id, _CODE), func_code.encode())

    def get_cached_func_code(self, call_id: CallId) -> str:
        """The source of a function, as it was stored."""
        with self._open_item(self._path(call_id, _CODE), "rb") as file:
            return str(file.read().decode())

    def get_cached_func_info(self, call_id: CallId) -> dict[str, str]:
        """Where the folder of a function lies."""
        return {"location": self._path(call_id)}

    def clear(self) -> None:
        """Remove all."""
        self.clear_location(self.location)

    def enforce_store_limits(
        self,
        bytes_limit: int | str | None,
        items_limit: int | None = None,
        age_limit: datetime.timedelta | None = None,
    ) -> None:
        """Remove the items that were not used for longest until all limits hold."""
        for item in self._get_items_to_delete(bytes_limit, items_limit, age_limit):
            self.clear_location(item.path)

    def _get_items_to_delete(
        self,
        bytes_limit: int | str | None,
        items_limit: int | None = None,
        age_limit: datetime.timedelta | None = None,
    ) -> list[Any]:
        if age_limit is not None and age_limit.total_seconds() < 0:
            raise ValueError("age_limit has to be a positive timedelta")
        items = {item.path: item for item in self.get_items()}
        uses = sorted((item.last_access.timestamp(), item.path, item.size) for item in items.values())
        beyond = names_beyond(
            uses,
            time.time(),
            most_bytes=memstr_to_bytes(bytes_limit) if isinstance(bytes_limit, str) else bytes_limit,
            most_items=items_limit,
            oldest=None if age_limit is None else age_limit.total_seconds(),
        )
        return [items[path] for path in beyond]

    def _concurrency_safe_write(self, to_write: Any, filename: str, write_func: Write) -> None:
        self._move_item(concurrency_safe_write(to_write, filename, write_func), filename)

    def _write_bytes(self, path: str, data: bytes) -> None:
        def write(value: bytes, aside: str) -> None:
            with self._open_item(aside, "wb") as file:
                file.write(value)

        self._concurrency_safe_write(data, path, write)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(location="{self.location}")'


class FileSystemStoreBackend(StoreBackendBase, StoreBackendMixin):
    """A backend over folders and files, for those that change only some of it."""

    location: Any = None

    def _open_item(self, f: str, mode: str) -> Any:
        return open(f, mode)

    def _item_exists(self, location: str) -> bool:
        return os.path.exists(location)

    def _move_item(self, src: str, dst: str) -> None:
        concurrency_safe_rename(src, dst)

    def configure(
        self, location: str, verbose: int = 1, backend_options: Mapping[str, Any] | None = None
    ) -> None:
        """Make the folder; options are `compress` and `mmap_mode`."""
        options = dict(backend_options or {})
        self.location = location
        self.verbose = verbose
        self.compress = options.get("compress", False)
        self.mmap_mode = options.get("mmap_mode")
        mkdirp(location)

    def create_location(self, location: str) -> None:
        """Make a folder."""
        mkdirp(location)

    def clear_location(self, location: str) -> None:
        """Remove what lies in the folder of the backend, or a folder below it."""
        if location == self.location:
            rm_subdirs(location)
        else:
            shutil.rmtree(location, ignore_errors=True)

    def get_items(self) -> list[CacheItemInfo]:
        """The folders that hold an object, with their sizes and last uses."""
        found = []
        for folder, _, names in os.walk(self.location):
            if _OUTPUT not in names:
                continue
            try:
                used = os.path.getatime(os.path.join(folder, _OUTPUT))
                size = sum(os.path.getsize(os.path.join(folder, name)) for name in names)
            except OSError:  # another process is removing it
                continue
            found.append(CacheItemInfo(folder, size, datetime.datetime.fromtimestamp(used)))
        return found
