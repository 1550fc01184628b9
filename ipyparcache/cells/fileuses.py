"""Files as a way from one iteration to another: what chunks wrote, read and asked for, and where they meet.

The serial loop lets an iteration see what earlier ones wrote. Iterations side by side may see it or not, so a
loop in which chunks met at one path, while both ran, ends with an error that names them.
"""

from __future__ import annotations

import genericpath
import os
import pathlib
import posixpath
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any
from urllib.parse import unquote

READ, WRITTEN, MADE, ASKED, WAS_THERE, IS_THERE = 1, 2, 4, 8, 16, 32

#: Libraries that keep results in files, which any iteration may find or make again.
_CACHES = frozenset({"joblib", "diskcache", "requests_cache", "huggingface_hub", "pooch", "numba"})


def _codes(*functions: Any) -> frozenset[CodeType]:
    return frozenset(f.__code__ for f in functions if hasattr(f, "__code__"))


#: Functions that ask one bit of a path.
_EXISTENCE = _codes(
    *(genericpath.exists, genericpath.isfile, genericpath.isdir, posixpath.lexists, posixpath.islink),
    *(pathlib.Path.exists, pathlib.Path.is_file, pathlib.Path.is_dir),
)
_BETWEEN = _codes(pathlib.Path.stat, pathlib.Path.lstat)
#: Where asking is a step of doing.
_OWN_BUSINESS = frozenset(
    {"shutil", "tempfile", "os", "glob", "linecache", "importlib", "posixpath", "logging"}
)


class _Noting(threading.local):
    """Whether this thread notes a file just now, so that doing so is not noted."""

    on = False


_noting = _Noting()
_current: FileUses | None = None
_plain_stat, _plain_lstat = os.stat, os.lstat
_hears = False


@dataclass
class FileUses:
    """What the iterations of one chunk did with files.

    Attributes
    ----------
    found
        By absolute path, a sum of `READ` (what it holds), `WRITTEN`, `MADE` (it was not there), `ASKED`
        (whether it is there) with `WAS_THERE`, and `IS_THERE` at the end. The entries of a folder lie under
        its path with a separator behind it.
    databases
        Files of SQLite that it has opened, which are written without being opened to be, as they were then.
    """

    found: dict[str, int] = field(default_factory=dict)
    databases: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def read(self, path: str) -> None:
        """The content from before is read, if it is not the chunk's own."""
        if path.endswith(os.sep) or not self.found.get(path, 0) & WRITTEN:
            self.found[path] = self.found.get(path, 0) | READ

    def write(self, path: str, *, keeps: bool) -> None:
        """A file is written; `keeps` says on top of what it holds."""
        is_there = _is_there(path)
        if is_there and os.path.isdir(path):  # an opener makes the file in there
            return
        if keeps and is_there:
            self.read(path)
        if not is_there:
            self._list_changes(path)
        self.found[path] = self.found.get(path, 0) | WRITTEN | (0 if is_there else MADE)

    def remove(self, path: str) -> None:
        """A file or folder goes."""
        if self.found.get(path, 0) & MADE and not self.found[path] & (READ | ASKED):
            del self.found[path]  # a temporary file
            return
        if _is_there(path):
            self._list_changes(path)
            self.found[path] = self.found.get(path, 0) | WRITTEN

    def ask(self, path: str) -> None:
        """Whether something is there is asked, if that is not the chunk's own doing."""
        if not self.found.get(path, 0) & (WRITTEN | ASKED):
            self.found[path] = self.found.get(path, 0) | ASKED | (WAS_THERE if _is_there(path) else 0)

    def connect(self, path: str) -> None:
        """A database is opened, to be read or to be written."""
        if path not in self.databases:
            self.databases[path] = _content_of(path)
        self.read(path)

    def ended(self) -> dict[str, int]:
        """What was found, with what is there now."""
        for path, before in self.databases.items():
            if _content_of(path) != before:
                self.found[path] = self.found.get(path, 0) | WRITTEN | (0 if before else MADE)
        for path, uses in self.found.items():
            if uses & WRITTEN and _is_there(path.rstrip(os.sep)):
                self.found[path] |= IS_THERE
        return self.found

    def _list_changes(self, path: str) -> None:
        folder = os.path.dirname(path) + os.sep
        self.found[folder] = self.found.get(folder, 0) | WRITTEN


def _is_there(path: str) -> bool:
    try:
        _plain_lstat(path)
    except (OSError, ValueError):
        return False
    return True


def _content_of(database: str) -> tuple[int, ...]:
    """Numbers that differ when a database has been written, by its file and that of what is to go there."""
    found: list[int] = []
    for path in (database, database + "-wal"):
        try:
            known = _plain_stat(path)
        except (OSError, ValueError):
            continue
        found += [known.st_size, known.st_mtime_ns] if known.st_size else []
    return tuple(found)


@contextmanager
def noted() -> Iterator[FileUses]:
    """Note what is done with files inside, by any thread of this process."""
    global _current, _hears
    if not _hears:
        _hears = True
        sys.addaudithook(_hear)
    uses = FileUses()
    before = _current
    _current = uses
    if before is None:
        _put_in(_stat, _lstat)
    try:
        yield uses
    finally:
        _current = before
        if before is None:
            _put_in(_plain_stat, _plain_lstat)


def _put_in(stat: Any, lstat: Any) -> None:
    for supported in (os.supports_fd, os.supports_dir_fd, os.supports_follow_symlinks):
        if _plain_stat in supported:
            supported.add(_stat)
        if _plain_lstat in supported:
            supported.add(_lstat)
    if os.stat in (_plain_stat, _stat) and os.lstat in (_plain_lstat, _lstat):  # nobody else's are in place
        os.stat, os.lstat = stat, lstat


def _stat(path: Any, *arguments: Any, **options: Any) -> Any:
    if _current is not None and not _noting.on and options.get("dir_fd") is None:
        _asked(path, sys._getframe(1))
    return _plain_stat(path, *arguments, **options)


def _lstat(path: Any, *arguments: Any, **options: Any) -> Any:
    if _current is not None and not _noting.on and options.get("dir_fd") is None:
        _asked(path, sys._getframe(1))
    return _plain_lstat(path, *arguments, **options)


def _asked(path: Any, frame: FrameType | None) -> None:
    caller = frame
    while caller is not None and caller.f_code in _BETWEEN:
        caller = caller.f_back
    exists = caller is not None and caller.f_code in _EXISTENCE
    if exists and caller is not None:
        caller = caller.f_back
    if caller is not None and caller.f_globals.get("__name__") in _OWN_BUSINESS:
        return
    _note(frame, FileUses.ask if exists else FileUses.read, path)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook; it never raises."""
    if _current is None or event not in _HANDLERS or _noting.on:
        return
    _HANDLERS[event](sys._getframe(1), *arguments)


def _note(frame: FrameType | None, what: Callable[..., None], path: Any, **options: Any) -> None:
    """Note a use of a path by user code, or by a library that does it for that."""
    uses = _current
    if uses is None or path is None or isinstance(path, int):
        return
    _noting.on = True
    try:
        from ipyparcache.digest.askers import asker_of, is_ignored

        full = os.path.abspath(os.fsdecode(os.fspath(path)))
        asker = asker_of(frame)
        if asker[1] not in _CACHES and not is_ignored(full, asker):
            what(uses, full + os.sep if options.pop("entries", False) else full, **options)
    except Exception:
        return  # what cannot be told is no path that two iterations could name
    finally:
        _noting.on = False


def _opened(frame: FrameType, path: Any, mode: Any, flags: Any) -> None:
    flags = flags if isinstance(flags, int) else 0
    if flags & (os.O_WRONLY | os.O_RDWR):
        _note(frame, FileUses.write, path, keeps=not flags & (os.O_TRUNC | os.O_EXCL))
    elif not flags & getattr(os, "O_DIRECTORY", 0):
        _note(frame, FileUses.read, path)


def _listed(frame: FrameType, path: Any) -> None:
    _note(frame, FileUses.read, "." if path is None else path, entries=True)


def _removed(frame: FrameType, path: Any, folder: Any = None) -> None:
    _note(frame, FileUses.remove, _inside(path, folder))


def _renamed(frame: FrameType, source: Any, target: Any, out_of: Any = -1, into: Any = -1) -> None:
    _note(frame, FileUses.remove, _inside(source, out_of))
    _note(frame, FileUses.write, _inside(target, into), keeps=False)


def _made(frame: FrameType, path: Any, mode: Any = 0, folder: Any = -1) -> None:
    _note(frame, _make_folder, _inside(path, folder))


def _connected(frame: FrameType, path: Any) -> None:
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    if name.startswith("file:"):
        name, _, options = name.removeprefix("file:").partition("?")
        name = "" if "mode=memory" in options else unquote(name.partition("#")[0])
    if name not in ("", ":memory:"):
        _note(frame, FileUses.connect, name)


def _inside(path: Any, folder: Any) -> Any:
    """A path that is relative to an open folder; None where that is not known."""
    if not isinstance(folder, int) or folder < 0 or not isinstance(path, str | bytes):
        return path
    try:
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
    except OSError:
        return None


def _make_folder(uses: FileUses, path: str) -> None:
    """A folder is made, or is there: which of the iterations does it makes no difference."""
    if not _is_there(path):
        folder = os.path.dirname(path) + os.sep
        uses.found[folder] = uses.found.get(folder, 0) | WRITTEN
    uses.found.pop(path, None)


_HANDLERS: dict[str, Callable[..., None]] = {
    "open": _opened,
    "os.listdir": _listed,
    "os.scandir": _listed,
    "os.remove": _removed,
    "os.rmdir": _removed,
    "shutil.rmtree": _removed,
    "os.rename": _renamed,
    "os.mkdir": _made,
    "sqlite3.connect": _connected,
}


# ---- where chunks meet


@dataclass(frozen=True)
class Span:
    """Iterations that ran together, and when they ended."""

    first: int
    last: int
    ended: float


@dataclass
class Meetings:
    """What the chunks merged so far did with files, in the order of their iterations."""

    _readers: dict[str, Span] = field(default_factory=dict)
    _writers: dict[str, tuple[Span, int]] = field(default_factory=dict)
    _askers: dict[tuple[str, bool], Span] = field(default_factory=dict)

    def add(
        self, first: int, last: int, started: float, ended: float, uses: Mapping[str, int]
    ) -> tuple[str, Span] | None:
        """Note what one more chunk did; a path at which it met an earlier one beside it, and which."""
        here = Span(first, last, ended)
        met: tuple[str, Span] | None = None
        for path, use in uses.items():
            earlier = self._before(path, use)
            if met is None and earlier is not None and earlier.ended > started:
                met = path, earlier
            if use & READ:
                self._readers[path] = _later(self._readers.get(path), here)
            if use & ASKED:
                key = path, bool(use & WAS_THERE)
                self._askers[key] = _later(self._askers.get(key), here)
            if use & WRITTEN:
                known = self._writers.get(path)
                self._writers[path] = _later(known[0] if known else None, here), use
        return met

    def wrote(self, path: str, number: int) -> None:
        """Note that the kernel has written a file for an iteration, just now."""
        here = Span(number, number, time.monotonic())
        for name in (path, os.path.dirname(path) + os.sep):
            self._writers[name] = here, WRITTEN | MADE | IS_THERE

    def _before(self, path: str, use: int) -> Span | None:
        """The earlier chunk that ended last of those with which this use does not go together."""
        found: list[Span] = []
        writer = self._writers.get(path)
        is_folder = path.endswith(os.sep)
        if writer is not None and (use & READ or (use & WRITTEN and not is_folder)):
            found.append(writer[0])
        if writer is not None and use & ASKED and bool(use & WAS_THERE) != bool(writer[1] & IS_THERE):
            found.append(writer[0])
        if use & WRITTEN:
            found += [span for span in (self._readers.get(path),) if span is not None]
            early = self._askers.get((path, bool(use & IS_THERE)))
            if early is not None and (use & MADE or not use & IS_THERE):
                found.append(early)
        return max(found, key=lambda span: span.ended, default=None)


def _later(known: Span | None, here: Span) -> Span:
    return here if known is None or here.ended >= known.ended else known
