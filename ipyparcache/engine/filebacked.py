"""Arrays that reach workers as maps of files: those that are maps already, and large ones where files are
asked for.

`pickling.dumps` asks `reduce_array` about each array that it meets, at any depth and in closures, too.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Iterator

from ipyparcache import pickling

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from typing import Any

_ROOMY = 2 * 10**9
"""Bytes that must be free in /dev/shm for it to be used."""


def parse_limit(limit: Any) -> int | None:
    """Bytes from which an array is written to a file: a number, `10K`, `1.5M`, or None for never.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if limit is None:
        return None
    if not isinstance(limit, str):
        return int(limit)
    if limit == "1M":
        return 1 << 20  # the default, of every call
    from ipyparcache.settings import parse_size

    return parse_size(limit)


def has_shareable_memory(a: Any) -> bool:
    """Whether the memory of an array is a map of a file, its own or that of an array it is a view of."""
    while a is not None:
        if isinstance(a, mmap.mmap):
            return True
        a = a.obj if isinstance(a, memoryview) else getattr(a, "base", None)
    return False


def _map_under(array: Any) -> Any:
    """The `np.memmap` of a named file that owns the memory of an array; None if there is none."""
    numpy = sys.modules["numpy"]
    found = None
    while isinstance(array, numpy.ndarray):
        if isinstance(array, numpy.memmap) and array.filename is not None and array._mmap is not None:
            found = array
        array = array.base
    return found


def map_file(path: str, dtype: Any, shape: tuple[int, ...], strides: Any, offset: int, mode: str) -> Any:
    """A `np.memmap` of part of a file; `strides` None for C order."""
    import numpy as np

    how: Any = mode
    if strides is None:
        return np.memmap(path, dtype=dtype, mode=how, offset=offset, shape=shape)
    extent = sum((count - 1) * step for count, step in zip(shape, strides, strict=True)) + dtype.itemsize
    raw = np.memmap(path, dtype=np.uint8, mode=how, offset=offset, shape=(extent,))
    return np.ndarray(shape, dtype, buffer=raw, strides=strides).view(np.memmap)


class FileArrays:
    """What one call writes to files, in a folder of its own that goes with it.

    Parameters
    ----------
    limit : int or None
        Bytes from which an array is written; None for never.
    mode : str
        How workers map it.
    folder : str, optional
        Where to make the folder.
    """

    def __init__(self, limit: int | None, mode: str, folder: str | None):
        self.limit = limit
        self.mode = "r+" if mode == "w+" else mode
        self._parent = folder
        self._folder: str | None = None
        self._count = 0
        # An array may go and another come at its address; a weak reference tells.
        self._written: dict[int, tuple[weakref.ref[Any], tuple[Any, ...]]] = {}
        self._end: weakref.finalize[Any, Any] | None = None

    def facts_of(self, array: Any) -> tuple[Any, ...] | None:
        """Arguments of `map_file` for an array that belongs into a file, which is written if need be."""
        if self.limit is None or array.nbytes < max(self.limit, 1):
            return None
        known = self._written.get(id(array))
        if known is not None and known[0]() is array and self.mode in ("r", "c"):
            return known[1]
        numpy = sys.modules["numpy"]
        self._count += 1
        path = os.path.join(self._made_folder(), f"{self._count}.array")
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            plain = numpy.ascontiguousarray(array.T if fortran else array)
            file.write(plain.reshape(-1).view(numpy.uint8).data)
        facts = (path, array.dtype, array.shape, array.strides if fortran else None, 0, self.mode)
        self._written[id(array)] = weakref.ref(array), facts
        return facts

    def _made_folder(self) -> str:
        if self._folder is None:
            from ipyparcache.engine.folders import make_kept, remove_kept  # with what it needs, 10 ms

            parent = self._parent or os.environ.get("JOBLIB_TEMP_FOLDER") or _usual_parent()
            parent = os.path.abspath(os.path.expanduser(parent))
            os.makedirs(parent, exist_ok=True)
            kept = make_kept(parent)
            self._folder = kept.path
            self._end = weakref.finalize(self, remove_kept, kept)
        return self._folder

    def close(self) -> None:
        """Remove the folder; workers that map its files read on."""
        if self._end is not None:
            self._end()
        self._folder = None
        self._written = {}


class _Active(threading.local):
    files: FileArrays | None = None


_active = _Active()


@contextlib.contextmanager
def active(files: FileArrays | None) -> Iterator[None]:
    """Have what this thread pickles for workers put its large arrays into these files."""
    before, _active.files = _active.files, files
    try:
        yield
    finally:
        _active.files = before


def is_active() -> bool:
    """Whether this thread puts large arrays into files."""
    return _active.files is not None


def reduce_array(array: Any) -> Any:
    """How to send an array that lies in a file or is to; NotImplemented for any other."""
    if array.dtype.hasobject:
        return NotImplemented
    if array.base is not None:
        facts = _facts_of_map(array)
        if facts is not None:
            return map_file, facts
    if _active.files is not None:
        facts = _active.files.facts_of(array)
        if facts is not None:
            return map_file, facts
    return NotImplemented


def _facts_of_map(array: Any) -> tuple[Any, ...] | None:
    source = _map_under(array)
    if source is None or not array.size or any(step < 0 for step in array.strides):
        return None
    if source.mode == "c":
        return None  # what was written into it is private to this process
    mode = "r+" if source.mode == "w+" else source.mode
    # `offset` of a view is that of its map, which begins at its first byte.
    distance = array.__array_interface__["data"][0] - source.__array_interface__["data"][0]
    strides = None if array.flags.c_contiguous else array.strides
    path = os.path.abspath(source.filename)
    return path, array.dtype, array.shape, strides, source.offset + distance, mode


def belongs_into_a_file(array: Any) -> bool:
    """Whether `reduce_array` has a word on this array."""
    if _active.files is not None:
        return True
    return array.base is not None and not array.dtype.hasobject and _map_under(array) is not None


def _usual_parent() -> str:
    with contextlib.suppress(OSError, AttributeError):  # where there is no such folder
        facts = os.statvfs("/dev/shm")
        if facts.f_bsize * facts.f_bavail > _ROOMY and os.access("/dev/shm", os.W_OK):
            return "/dev/shm"
    import tempfile

    return tempfile.gettempdir()


pickling.reduce_array = reduce_array
