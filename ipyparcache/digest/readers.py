"""Functions of libraries that open files where Python does not see it: which paths they are given.

Readers written in C++ and Rust open files by system calls of their own, which raise no audit event. While a
run is watched, those that the notebook can reach are wrapped, and what they are given counts as opened:
files, lists of them, folders, patterns, and what a lazy frame will read.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ipyparcache.digest.askers import asker_of, is_ignored
from ipyparcache.digest.audited import note_open
from ipyparcache.digest.openfiles import (
    Seen,
    absolute,
    bookkeeping,
    concerned,
    is_quiet,
    listing_of,
    path_of,
)

UPDATE = os.O_RDWR
REPLACE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

Arguments = tuple[Any, ...]
Options = dict[str, Any]
Opened = tuple[Any, int]
"""A path, or what else a reader takes, and the flags with which it is opened."""


@dataclass(frozen=True)
class Reader:
    """Functions of one module or class, and what they open, from their arguments."""

    module: str
    names: str  # separated by blanks; those that this version has not are left out
    opens: Callable[[Arguments, Options], Iterator[Opened]]
    owner: str = ""  # a class of the module


def _given(position: int, *keywords: str, flags: int = os.O_RDONLY) -> Callable[..., Iterator[Opened]]:
    """The argument at a position, or of one of these names."""

    def opens(arguments: Arguments, options: Options) -> Iterator[Opened]:
        if len(arguments) > position:
            yield arguments[position], flags
        for keyword in keywords:
            if keyword in options:
                yield options[keyword], flags

    return opens


def _hdf(arguments: Arguments, options: Options) -> Iterator[Opened]:
    """`h5py.File(self, name, mode="r")`."""
    mode = arguments[2] if len(arguments) > 2 else options.get("mode") or "r"
    flags = {"r": os.O_RDONLY, "a": UPDATE, "r+": UPDATE}.get(mode, REPLACE)
    for path, _ in _given(1, "name")(arguments, options):
        yield path, flags


def _database(arguments: Arguments, options: Options) -> Iterator[Opened]:
    """`duckdb.connect(database=":memory:", read_only=False)`."""
    read_only = options.get("read_only") or (len(arguments) > 1 and arguments[1])
    for path, _ in _given(0, "database")(arguments, options):
        if not str(path).startswith(":") and str(path):
            yield path, os.O_RDONLY if read_only else UPDATE


def _planned(arguments: Arguments, options: Options) -> Iterator[Opened]:
    """The files that lazy frames of polars will read: frames, or a list of them as the first argument."""
    frames = arguments[0] if arguments else options.get("lazy_frames", ())
    for frame in frames if isinstance(frames, (list, tuple)) else (frames,):
        if " SCAN [" not in frame.explain(optimized=False):
            continue
        plan: bytes = frame.serialize()
        found = list(_paths_in(plan))
        if len(found) < plan.count(b"Paths"):
            raise ValueError("the files that a lazy frame reads cannot be told")
        for path in found:
            yield path, os.O_RDONLY


def _paths_in(plan: bytes) -> Iterator[str]:
    """Texts of the fields `inner` behind `Paths` in the MessagePack of a plan of polars."""
    for part in plan.split(b"Paths")[1:]:
        for found in re.finditer(rb"\xa5inner(?:([\xa0-\xbf])|\xd9(.)|\xda(..))", part, re.DOTALL):
            short, byte, two = found.groups()
            size = short[0] & 31 if short else byte[0] if byte else int.from_bytes(two, "big")
            yield part[found.end() : found.end() + size].decode()


_PATH = _given(0, "source", "path", "path_or_file", "file", "where", "input_file")
_OUT = _given(1, "file", "path", "dest", "where", "output_file", "base_dir", flags=REPLACE)
_SCANS = "scan_csv scan_delta scan_ipc scan_lines scan_ndjson scan_parquet"
_READS = (
    "read_avro read_csv read_csv_batched read_delta read_excel read_ipc read_ipc_schema read_ipc_stream "
    "read_json read_lines read_ndjson read_ods read_parquet read_parquet_metadata read_parquet_schema"
)
_DUCK_FILES = (
    "read_csv read_json read_parquet from_csv_auto from_parquet read_csv_auto from_json from_parquet_glob"
)
_DUCK_PATHS = ("path_or_buffer", "file_glob", "file_globs", "name")

READERS = (
    Reader("pyarrow.parquet.core", "__init__", _given(1, "path_or_paths"), "ParquetDataset"),
    Reader("pyarrow.parquet.core", "__init__", _given(1, "source"), "ParquetFile"),
    Reader("pyarrow.parquet.core", "__init__", _OUT, "ParquetWriter"),
    Reader("pyarrow.dataset", "dataset", _PATH),
    Reader("pyarrow.dataset", "write_dataset", _OUT),
    Reader("pyarrow.feather", "read_table read_feather", _PATH),
    Reader("pyarrow.feather", "write_feather", _OUT),
    Reader("pyarrow.csv", "read_csv open_csv", _PATH),
    Reader("pyarrow.csv", "write_csv", _OUT),
    Reader("pyarrow.json", "read_json open_json", _PATH),
    Reader("pyarrow", "memory_map input_stream", _PATH),
    Reader("polars", f"{_READS} {_SCANS}", _PATH),
    Reader("polars", "collect_all", _planned),
    Reader("polars", "collect collect_async collect_batches collect_schema describe", _planned, "LazyFrame"),
    Reader("polars", "sink_csv sink_ipc sink_ndjson sink_parquet", _planned, "LazyFrame"),
    Reader("polars", "sink_csv sink_ipc sink_ndjson sink_parquet", _OUT, "LazyFrame"),
    Reader(
        "polars",
        "write_avro write_csv write_ipc write_ipc_stream write_json write_ndjson write_parquet",
        _OUT,
        "DataFrame",
    ),
    Reader("h5py._hl.files", "__init__", _hdf, "File"),
    Reader("duckdb", "connect", _database),
    Reader("duckdb", _DUCK_FILES, _given(0, *_DUCK_PATHS)),
    Reader("duckdb", _DUCK_FILES, _given(1, *_DUCK_PATHS), "DuckDBPyConnection"),
    Reader(
        "duckdb",
        "write_csv to_csv write_parquet to_parquet",
        _given(1, "file_name", flags=REPLACE),
        "DuckDBPyRelation",
    ),
    # Not what takes SQL: DuckDB looks for tables among the variables of who calls it, which would be us.
)
MODULES = tuple(dict.fromkeys(reader.module for reader in READERS))


def wrappers(module: str) -> list[tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]]:
    """Owner, name and wrapper of the readers that a loaded module holds."""
    here = sys.modules.get(module)
    found: list[tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = []
    for reader in READERS:
        owner: Any = here if reader.module == module else None
        if reader.owner:
            owner = getattr(owner, reader.owner, None)
        for name in reader.names.split() if owner is not None else ():
            if hasattr(owner, name):
                found.append((owner, name, functools.partial(_wrap, opens=reader.opens)))
    return found


def _wrap(plain: Callable[..., Any], opens: Callable[..., Iterator[Opened]]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def reading(*arguments: Any, **options: Any) -> Any:
        if not is_quiet():
            with bookkeeping():
                frame = sys._getframe(1)
                try:
                    opened = list(opens(arguments, options))
                except Exception:  # what is run must not fail for being watched
                    opened = []
                    for seen in concerned():
                        seen.lost = seen.lost or f"the files that `{plain.__qualname__}` opens cannot be told"
                for what, flags in opened:
                    for seen in concerned():
                        _note(seen, frame, what, flags)
        return plain(*arguments, **options)

    return reading


def _note(seen: Seen, frame: FrameType, what: Any, flags: int) -> None:
    """Note that a path is opened, or each of a list; of a folder all files, of a pattern those that fit."""
    if isinstance(what, (list, tuple)):
        for part in what:
            _note(seen, frame, part, flags)
        return
    path = path_of(what) if isinstance(what, (str, bytes, os.PathLike)) else None
    if not path or "\n" in path:
        return
    path = os.path.expanduser(path.removeprefix("file://"))
    if "://" in path:
        return
    if os.path.isdir(path):
        if flags != os.O_RDONLY:
            seen.lost = seen.lost or f"it writes files into the folder {path!r}"
            return
        _note_folder(seen, frame, path)
    elif glob.has_magic(path) and not os.path.exists(path):
        fixed = path[: re.search(r"[*?[]", path).start()]  # type: ignore[union-attr]  # it has one
        _note_folder(seen, frame, os.path.dirname(fixed) or os.curdir, glob.glob(path, recursive=True))
    else:
        note_open(seen, frame, path, None, flags)


def _note_folder(seen: Seen, frame: FrameType, folder: str, only: list[str] | None = None) -> None:
    """Note what lies in a folder and below it, and that its files are read, or only some of them."""
    wanted = None if only is None else set(map(os.path.normpath, only))
    asker = asker_of(frame)
    for where, _, names in os.walk(folder):
        if is_ignored(absolute(where), asker):
            continue
        seen.listings.setdefault(seen.spelled(os.path.normpath(where)), listing_of(absolute(where)))
        for name in names:
            path = os.path.normpath(os.path.join(where, name))
            if wanted is None or path in wanted:
                note_open(seen, frame, path, None, os.O_RDONLY)
