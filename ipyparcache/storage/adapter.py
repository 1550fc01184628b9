"""A store over a backend that a third party wrote for `Memory`."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ipyparcache.errors import StoreUnavailable
from ipyparcache.storage.locks import Locks
from ipyparcache.storage.store import Blob, Buffer, Item, Store, StoreBackendBase, checked_name

_counter = itertools.count()


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
    """Blobs as items of a backend, at `<location>/<group>/<rest of the name>`."""

    def __init__(self, backend: StoreBackendBase, location: str, locks: Locks):
        self.backend = backend
        self.location = location
        self._locks = locks  # on this machine: a backend need not offer any
        self._lock = threading.Lock()

    def open(self, name: str) -> BackendBlob | None:
        """The item of this name, read whole."""
        path = self._item(name)
        try:
            if not self.backend._item_exists(path):
                return None
            with self.backend._open_item(path, "rb") as file:
                return BackendBlob(file.read())
        except Exception:  # whatever a backend raises when an item is not there any more
            return None

    def put(self, name: str, parts: Sequence[Buffer], *, own_file: bool = False) -> int:
        """Write the item aside and move it."""
        path = self._item(name)
        aside = f"{path}-{os.getpid()}-{threading.get_ident()}-{next(_counter)}"
        data = b"".join(parts)
        try:
            self.backend.create_location(os.path.dirname(path))
            with self.backend._open_item(aside, "wb") as file:
                file.write(data)
            self.backend._move_item(aside, path)
        except Exception as error:
            raise StoreUnavailable(self.location, f"{type(error).__name__}: {error}") from error
        return len(data)

    def delete(self, name: str) -> bool:
        """Remove the item."""
        path = self._item(name)
        with contextlib.suppress(Exception):  # gone already, in words of the backend's own
            if self.backend._item_exists(path):
                self.backend.clear_location(path)
                return True
        return False

    def set_aside(self, name: str) -> None:
        """Remove the item: a backend has no place aside."""
        self.delete(name)

    def group(self, group: str) -> list[Item]:
        """The items of one group."""
        checked_name(group)
        return [item for item in self.items() if item.name == group or item.name.startswith(f"{group}.")]

    def items(self) -> Iterator[Item]:
        """All items that look like blobs."""
        try:
            found: list[Any] = list(self.backend.get_items())
        except Exception:  # a place that is not there yet
            return
        for item in found:
            folder, last = os.path.split(str(item.path))
            group = os.path.basename(folder)
            name = group if last == "_" else f"{group}.{last}"
            with contextlib.suppress(ValueError):
                access = item.last_access
                modified = access.timestamp() if hasattr(access, "timestamp") else float(access or 0.0)
                yield Item(checked_name(name), int(item.size), modified)

    def lock(self, name: str, timeout: float | None = None) -> AbstractContextManager[bool]:
        """Hold the lock `name` on this machine."""
        return self._locks.hold(name, timeout)

    def capacity(self) -> int | None:
        """Not known."""
        return None

    def close(self) -> None:
        """Close the lock file."""
        self._locks.close()

    def _item(self, name: str) -> str:
        group, _, rest = checked_name(name).partition(".")
        return os.path.join(self.location, group, rest or "_")
