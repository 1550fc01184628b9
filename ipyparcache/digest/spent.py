"""Handles that are closed: of what they were connected to, nothing is left in them but names and counts.

Such a handle stays behind every `with open(...) as file`. It can be told by plain facts, and made again from
them, without touching what it was connected to.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Facts = tuple[Any, ...]  # of primitives, and tuples of them


class _Way(NamedTuple):
    """How to tell a closed handle, and how to make it again."""

    facts: Callable[[Any], Facts | None]  # None if it is open
    make: Callable[..., object]


def facts_of(obj: object) -> Facts | None:
    """Full name of the type and what there is to tell of a closed handle; None for anything else."""
    name = f"{type(obj).__module__}.{type(obj).__qualname__}"
    way = _WAYS.get(name)
    if way is None:
        return None
    try:
        facts = way.facts(obj)
    except (AttributeError, TypeError, ValueError):  # of a kind that is not known here
        return None
    return None if facts is None else (name, *facts)


def make(name: str, *facts: Any) -> object:
    """A closed handle from what `facts_of` told."""
    return _WAYS[name].make(*facts)


# ---- files


def _file_facts(file: Any) -> Facts | None:
    if not file.closed:
        return None
    name, mode = file.name, getattr(file, "mode", None)
    if not isinstance(name, str | bytes | int) or not isinstance(mode, str | None):
        return None
    return type(file).__name__, name, mode, getattr(file, "encoding", None), getattr(file, "errors", None)


def _make_file(kind: str, name: Any, mode: str | None, encoding: str | None, errors: str | None) -> object:
    plain = (mode or "r").replace("b", "").replace("t", "").replace("x", "w")
    raw: Any = io.FileIO(os.devnull, plain)
    raw.name = name
    made = raw
    if kind != "FileIO":
        plain_kind: Any = io.BufferedReader if "r" in plain else io.BufferedWriter
        made = (io.BufferedRandom if "+" in plain else plain_kind)(raw)
    if kind == "TextIOWrapper":
        made = io.TextIOWrapper(made, encoding, errors)
        if mode is not None:
            vars(made)["mode"] = mode
    made.close()
    return made


def _plain_attributes(obj: Any) -> Facts:
    kinds = (int, float, bool, str, bytes, type(None))
    return tuple((name, value) for name, value in vars(obj).items() if type(value) in kinds)


def _with_attributes(module: str, cls: str) -> Callable[..., object]:
    def make(attributes: Facts) -> object:
        kind = getattr(importlib.import_module(module), cls)
        made = kind.__new__(kind)
        vars(made).update(attributes)
        return made

    return make


def _compressed_facts(file: Any) -> Facts | None:
    return (_plain_attributes(file),) if file.closed else None


def _zip_facts(archive: Any) -> Facts | None:
    if archive.fp is not None:
        return None
    members = tuple(
        tuple((slot, getattr(info, slot)) for slot in type(info).__slots__ if hasattr(info, slot))
        for info in archive.filelist
    )
    plain = (int, float, bool, str, bytes, tuple, type(None))
    if not all(type(value) in plain for member in members for _, value in member):
        return None
    return _plain_attributes(archive), members


def _make_zip(attributes: Facts, members: Facts) -> object:
    import threading
    import zipfile

    made = zipfile.ZipFile.__new__(zipfile.ZipFile)
    vars(made).update(attributes, _lock=threading.RLock(), filelist=[], NameToInfo={})
    for member in members:
        info = zipfile.ZipInfo.__new__(zipfile.ZipInfo)
        for slot, value in member:
            setattr(info, slot, value)
        made.filelist.append(info)
        made.NameToInfo[info.filename] = info
    return made


# ---- readers and writers of CSV


def _csv_facts(handle: Any) -> Facts | None:
    """The closed file that it reads or writes, its dialect, and how many lines it has read."""
    held = [part.file if type(part) is _Lines else part for part in gc.get_referents(handle)]
    files = [getattr(part, "__self__", part) for part in held]
    told = [facts for facts in map(facts_of, files) if facts is not None]
    if len(told) != 1:
        return None
    names = (
        "delimiter", "doublequote", "escapechar", "lineterminator", "quotechar", "quoting",
        "skipinitialspace", "strict",
    )  # fmt: skip
    dialect = tuple((name, getattr(handle.dialect, name)) for name in names)
    return told[0], dialect, getattr(handle, "line_num", 0)


class _Lines:
    """So many empty lines, then those of a closed file."""

    def __init__(self, count: int, file: Any) -> None:
        self._left = count
        self.file = file

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._left:
            self._left -= 1
            return ""
        return str(next(self.file))


def _make_csv_reader(file: Facts, dialect: Facts, count: int) -> object:
    import csv

    made = csv.reader(_Lines(count, make(*file)), **dict(dialect))
    for _ in range(count):
        next(made)
    return made


def _make_csv_writer(file: Facts, dialect: Facts, _count: int) -> object:
    import csv

    closed: Any = make(*file)
    return csv.writer(closed, **dict(dialect))


# ---- databases


def _connection_facts(connection: Any) -> Facts | None:
    sqlite3 = sys.modules["sqlite3"]
    try:
        connection.total_changes  # noqa: B018 (asks whether it is open)
    except sqlite3.ProgrammingError as error:
        # another thread's connection says something else, and must be left alone
        return () if "closed" in str(error) else None
    return None


def _make_connection() -> object:
    import sqlite3

    made = sqlite3.connect(":memory:")
    made.close()
    return made


# ---- HDF5


def _hdf_facts(handle: Any) -> Facts | None:
    """Of a file, group or dataset of h5py whose file is closed.

    The reader that a dataset keeps for its next read is left out: on a closed file it can only fail.
    """
    if handle:
        return None
    return *_plain_attributes(handle), *((n, v) for n, v in vars(handle).items() if n == "_libver")


def _make_hdf(module: str, cls: str, identifiers: str, identifier: str) -> Callable[..., object]:
    def make(*attributes: Any) -> object:
        base = importlib.import_module("h5py._hl.base")
        kind = getattr(importlib.import_module(module), cls)
        made = kind.__new__(kind)
        nothing = getattr(importlib.import_module(identifiers), identifier)(0)
        base.HLObject.__init__(made, nothing)
        vars(made).update(attributes)
        if cls == "Dataset":
            h5p = importlib.import_module("h5py.h5p")
            vars(made).update(_cache_props={}, _dxpl=h5p.create(h5p.DATASET_XFER))
        return made

    return make


_FILE = _Way(_file_facts, _make_file)
_WAYS = {
    "_io.TextIOWrapper": _FILE,
    "_io.BufferedReader": _FILE,
    "_io.BufferedWriter": _FILE,
    "_io.BufferedRandom": _FILE,
    "_io.FileIO": _FILE,
    "gzip.GzipFile": _Way(_compressed_facts, _with_attributes("gzip", "GzipFile")),
    "bz2.BZ2File": _Way(_compressed_facts, _with_attributes("bz2", "BZ2File")),
    "lzma.LZMAFile": _Way(_compressed_facts, _with_attributes("lzma", "LZMAFile")),
    "zipfile.ZipFile": _Way(_zip_facts, _make_zip),
    "_csv.reader": _Way(_csv_facts, _make_csv_reader),
    "_csv.writer": _Way(_csv_facts, _make_csv_writer),
    "h5py._hl.files.File": _Way(_hdf_facts, _make_hdf("h5py._hl.files", "File", "h5py.h5f", "FileID")),
    "h5py._hl.group.Group": _Way(_hdf_facts, _make_hdf("h5py._hl.group", "Group", "h5py.h5g", "GroupID")),
    "h5py._hl.dataset.Dataset": _Way(
        _hdf_facts, _make_hdf("h5py._hl.dataset", "Dataset", "h5py.h5d", "DatasetID")
    ),
    "sqlite3.Connection": _Way(_connection_facts, _make_connection),
}
KINDS = frozenset(_WAYS)
"""Full names of the types whose closed handles are known."""
