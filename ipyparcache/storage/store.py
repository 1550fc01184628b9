"""What a store is: named blobs that are written whole, read in parts, and locked by name.

Everything above (`storage.entry`) speaks only to `Store`; everything below is one implementation a file,
and each of them passes `tests/contracts/store.py`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
Signature: TypeAlias = tuple[int, int, int, int]
"""Size, inode, mtime_ns and ctime_ns of a file: equal only if nobody wrote to it in between."""

_NAME = re.compile(r"[0-9A-Za-z_-]{2,200}(\.[0-9A-Za-z_-]{1,100})?")


class Item(NamedTuple):
    """One blob as a listing shows it; `modified` is in seconds since the epoch."""

    name: str
    size: int
    modified: float


class Blob(ABC):
    """One stored blob, open for reading; what it hands out stays valid after `close` and after a `delete`."""

    size: int
    modified: float
    signature: Signature | None
    """None where the system cannot tell a rewritten file, so that its content must be checked each time."""

    is_whole = False
    """Whether it was read whole when it was opened, so that to keep it costs no more than its bytes."""

    token: object | None = None
    """What `Store.token` gives as long as the blob is as it was opened."""

    @abstractmethod
    def read(self, offset: int, length: int) -> Buffer:
        """These bytes; fewer if the blob ends before."""

    @abstractmethod
    def writable(self, offset: int, length: int) -> memoryview:
        """These bytes as private writable memory, mapped copy-on-write where that is safe.

        Raises
        ------
        EOFError
            If the blob ends before.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of what reading needed."""

    def __enter__(self) -> Blob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Store(ABC):
    """Named blobs in one place, shared with other threads, processes and perhaps machines.

    Readers see a blob whole or not at all. A name is letters, digits, `_` and `-`, with at most one dot that
    parts a group from what tells its members apart; listing one group is quick.
    """

    location: str

    @abstractmethod
    def open(self, name: str) -> Blob | None:
        """The blob of this name, or None where there is none or it cannot be read."""

    @abstractmethod
    def put(self, name: str, parts: Sequence[Buffer], *, own_file: bool = False) -> int:
        """Write the parts one after another as the blob `name`, in place of an older one; bytes written.

        With `own_file`, a store of files gives it one of its own, so that `path` can name it.

        Raises
        ------
        StoreUnavailable
            If it cannot be written; nothing of it is left then.
        """

    def token(self, name: str) -> object | None:
        """Something that is the same as long as the blob is untouched; None if that is not told quickly."""
        return None

    def path(self, name: str, *, unpack: bool = False) -> str | None:
        """The file that holds this blob alone; None where there is no such file.

        With `unpack`, a blob that lies together with others gets a file of its own first.
        """
        return None

    @abstractmethod
    def delete(self, name: str) -> bool:
        """Take a blob away; whether there was one. Who has it open reads on."""

    def remove(self, names: Iterable[str]) -> set[str]:
        """Take several blobs away; the names of those that were there."""
        return {name for name in names if self.delete(name)}

    def wipe(self) -> None:
        """Take everything away."""
        self.remove([item.name for item in self.items()])

    def clear_under(self, prefix: str) -> None:
        """Take away the blobs whose name begins so."""
        self.remove([item.name for item in self.items() if item.name.startswith(prefix)])

    @abstractmethod
    def set_aside(self, name: str) -> None:
        """Take a damaged blob out of the way, where a person can still look at it."""

    @abstractmethod
    def group(self, group: str) -> list[Item]:
        """The blobs whose name is `group` or begins with `group.`, in no order."""

    def open_group(self, group: str) -> list[tuple[str, Blob]]:
        """The same blobs open for reading, with their names."""
        opened = [(item.name, self.open(item.name)) for item in self.group(group)]
        return [(name, blob) for name, blob in opened if blob is not None]

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """All blobs, in no order."""

    @abstractmethod
    def lock(self, name: str, timeout: float | None = None) -> AbstractContextManager[bool]:
        """Hold the lock of this name; it need not be the name of a blob.

        Yields False if others hold it for longer than `timeout` seconds (None waits on), or where locks
        cannot be had: then go on without. The thread that holds a lock may take it again. Locks of the dead
        are free.
        """

    @abstractmethod
    def close(self) -> None:
        """Close what is kept open between calls; the store may be used again."""

    def take_complaints(self) -> list[str]:
        """What was found damaged below the level of blobs since the last call, one line each."""
        return []

    @abstractmethod
    def capacity(self) -> int | None:
        """Bytes of the disk that the store lies on, or None if that cannot be told."""


def checked_name(name: str) -> str:
    """`name`, if every store can take it.

    Raises
    ------
    ValueError
        If it holds other characters, or is too long or too short.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a blob of a store")
    return name


class StoreBackendBase(ABC):
    """What a third party writes to have `Memory` keep its results elsewhere: a file system, in short.

    Register a subclass with `register_store_backend`. `ipyparcache` signs and checks what it puts there; the
    backend only moves bytes.
    """

    location: str = ""
    verbose: int = 0

    @abstractmethod
    def _open_item(self, f: str, mode: str) -> Any:
        """Open an item of the store, `rb` or `wb`, as a file object."""

    @abstractmethod
    def _item_exists(self, location: str) -> bool:
        """Whether an item lies there."""

    @abstractmethod
    def _move_item(self, src: str, dst: str) -> None:
        """Move an item, in place of one that lies there."""

    @abstractmethod
    def create_location(self, location: str) -> None:
        """Make a place for items."""

    @abstractmethod
    def clear_location(self, location: str) -> None:
        """Remove a place with all items in it, or an item."""

    @abstractmethod
    def get_items(self) -> Any:
        """All items, each with `path`, `size` and `last_access`."""

    @abstractmethod
    def configure(
        self, location: str, verbose: int = 0, backend_options: dict[str, Any] | None = None
    ) -> None:
        """Set the backend up for a place."""


STORE_BACKENDS: dict[str, type[StoreBackendBase]] = {}
"""Backends that `register_store_backend` made known by name."""


def register_store_backend(backend_name: str, backend: type[StoreBackendBase]) -> None:
    """Make a backend known, for `Memory(backend=backend_name)`.

    Raises
    ------
    ValueError
        If the name is no string, or the backend no subclass of `StoreBackendBase`.
    """
    if not isinstance(backend_name, str):
        raise ValueError(f"Store backend name should be a string, {backend_name!r} was given.")
    if not isinstance(backend, type) or not issubclass(backend, StoreBackendBase):
        raise ValueError(f"Store backend should inherit StoreBackendBase, {backend!r} was given.")
    STORE_BACKENDS[backend_name] = backend
