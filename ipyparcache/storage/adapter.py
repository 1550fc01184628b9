"""A store over a backend that a third party wrote for `Memory`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import blake3

from ipyparcache.errors import StoreUnavailable
from ipyparcache.storage.locks import Locks
from ipyparcache.storage.store import Blob, Buffer, Item, Store, StoreBackendBase, checked_name

_counter = itertools.count()

_OUTPUT = "output.pkl"
_METADATA = "metadata.json"

_PREFIX = 16
"""Characters of a name by which blobs lie together in a folder: results of one function begin alike."""


class BackendBlob(Blob):
    """A blob that was read whole."""

    signature = None

    def __init__(self, data: bytes, modified: float = 0.0):
        self.size = len(data)
        self.modified = modified
        self._data = data

    def read(self, offset: int, length: int) -> Buffer:
        """These bytes; fewer if the blob ends before."""
        return self._data[offset : offset + length]

    def writable(self, offset: int, length: int) -> memoryview:
        """These bytes, copied."""
        if offset + length > self.size:
            raise EOFError(f"{offset + length - self.size} bytes are missing")
        return memoryview(bytearray(self._data[offset : offset + length]))

    def close(self) -> None:
        """There is nothing to close."""


class BackendStore(Store):
    """Blobs as items of a backend: each is `output.pkl` in a folder of its own, as joblib's results are.

    Backends list such folders, and take them away whole. `metadata.json` beside it tells the name of the
    blob, and one level above a file lists the members of a group: a backend that lists nothing finds them,
    too.
    """

    def __init__(self, backend: StoreBackendBase, location: str, locks: Locks):
        self.backend = backend
        self.location = location
        self._locks = locks  # on this machine: a backend need not offer any
        self._names: dict[str, str | None] = {}  # of blobs, by folder: read once, as they do not change

    def open(self, name: str) -> BackendBlob | None:
        """The item of this name, read whole."""
        data = self._read(os.path.join(self._folder(name), _OUTPUT))
        return None if data is None else BackendBlob(data)

    def put(self, name: str, parts: Sequence[Buffer], *, own_file: bool = False) -> int:
        """Write the item aside and move it."""
        folder = self._folder(name)
        data = b"".join(parts)
        try:
            self.backend.create_location(folder)
            self._write(os.path.join(folder, _OUTPUT), data)
            self._write(os.path.join(folder, _METADATA), json.dumps({"name": name}).encode())
            self._change_members(name, (len(data), time.time()))
        except Exception as error:
            raise StoreUnavailable(self.location, f"{type(error).__name__}: {error}") from error
        return len(data)

    def delete(self, name: str) -> bool:
        """Remove the folder of the item."""
        folder = self._folder(name)
        there = False
        with contextlib.suppress(Exception):  # gone already, in words of the backend's own
            there = bool(self.backend._item_exists(os.path.join(folder, _OUTPUT)))
            if there:
                self.backend.clear_location(folder)
        with contextlib.suppress(Exception):
            self._change_members(name, None)
        self._names.pop(folder, None)
        return there

    def set_aside(self, name: str) -> None:
        """Remove the item: a backend has no place aside."""
        self.delete(name)

    def wipe(self) -> None:
        """Remove the place of the backend with all that is in it."""
        self._names.clear()
        with contextlib.suppress(Exception):  # not there, in words of the backend's own
            self.backend.clear_location(self.location)

    def clear_under(self, prefix: str) -> None:
        """Remove the folder of what begins so, if all that lies in it does."""
        if len(prefix) == _PREFIX:
            with contextlib.suppress(Exception):  # not there, in words of the backend's own
                self.backend.clear_location(os.path.join(self.location, prefix))

    def group(self, group: str) -> list[Item]:
        """The items of one group."""
        return [Item(name, size, modified) for name, (size, modified) in self._members(group).items()]

    def items(self) -> Iterator[Item]:
        """All items that the backend lists."""
        try:
            listed: list[Any] = list(self.backend.get_items())
        except Exception:  # a place that is not there yet
            return
        found: dict[str, tuple[int, float]] = {}
        for item in listed:
            path = str(item.path)
            name = self._name_in(path) or self._name_in(os.path.dirname(path))  # a folder, or a file in one
            if name is not None:
                access = item.last_access
                used = access.timestamp() if hasattr(access, "timestamp") else float(access or 0.0)
                size, latest = found.get(name, (0, 0.0))
                found[name] = size + int(item.size), max(used, latest)
        for name, (size, latest) in found.items():
            yield Item(name, size, latest)

    def lock(self, name: str, timeout: float | None = None) -> AbstractContextManager[bool]:
        """Hold the lock `name` on this machine."""
        return self._locks.hold(name, timeout)

    def capacity(self) -> int | None:
        """Not known."""
        return None

    def close(self) -> None:
        """Close the lock file."""
        self._locks.close()

    def _folder(self, name: str) -> str:
        digest = blake3.blake3(checked_name(name).encode()).hexdigest(16)
        return os.path.join(self.location, name.partition(".")[0][:_PREFIX], digest)

    def _name_in(self, folder: str) -> str | None:
        """The name of the blob that lies in a folder."""
        if folder not in self._names:
            told = self._read(os.path.join(folder, _METADATA))
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._names[folder] = checked_name(json.loads(told or b"{}")["name"])
        return self._names.get(folder)

    def _list_of(self, group: str) -> str:
        return os.path.join(self.location, checked_name(group)[:_PREFIX], f"{group}.json")

    def _members(self, group: str) -> dict[str, tuple[int, float]]:
        told = self._read(self._list_of(group))
        try:
            return {
                str(name): (int(size), float(when))
                for name, (size, when) in json.loads(told or b"{}").items()
            }
        except (ValueError, TypeError, AttributeError):
            return {}

    def _change_members(self, name: str, facts: tuple[int, float] | None) -> None:
        group = name.partition(".")[0]
        with self._locks.hold(f"{group}-members"):
            members = self._members(group)
            if facts is None and name not in members:
                return
            members.pop(name, None)
            if facts is not None:
                members[name] = facts
            self._write(self._list_of(group), json.dumps(members).encode())

    def _read(self, path: str) -> bytes | None:
        try:
            if not self.backend._item_exists(path):
                return None
            with self.backend._open_item(path, "rb") as file:
                return bytes(file.read())
        except Exception:  # whatever a backend raises when an item is not there any more
            return None

    def _write(self, path: str, data: bytes) -> None:
        aside = f"{path}-{os.getpid()}-{threading.get_ident()}-{next(_counter)}"
        with self.backend._open_item(aside, "wb") as file:
            file.write(data)
        self.backend._move_item(aside, path)
