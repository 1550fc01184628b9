"""What a run asks of the file system, the environment and the console: the watch that notes it, what it saw.

What raises an audit event is heard by `audited`, what raises none by `unaudited`.

Who asks decides what counts: the notebook and local modules always, a distribution unless it is being
imported or looks after its own configuration and fonts; threads that were there before the run do not count,
but for those of executors, which the run may have given work.
"""

from __future__ import annotations

import os
import stat as stat_module
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from ipyparcache.digest import modules

Signature = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode

plain_stat = os.stat
plain_lstat = os.lstat
plain_getcwd = os.getcwd
plain_open = os.open


@dataclass
class FileUse:
    """What a run did with one file."""

    spelled: str
    is_read: bool = False  # its content from before the run is an input
    is_written: bool = False
    is_made: bool = False  # what it holds now was made by the run
    is_log: bool = False  # it was only ever opened to append
    existed: bool = False
    before: Signature | None = None  # when it was first read; None: there was none
    content: bytes | None = None  # digest of what it held before the run changed it


@dataclass(frozen=True)
class Command:
    """A shell command or another program that the run started."""

    what: str
    program: str


@dataclass(frozen=True)
class Asker:
    """A library that asked for the frame of code of the notebook."""

    module: str
    line: int


@dataclass
class Seen:
    """All that one run asked for; picklable, so that workers can send it."""

    folder: str  # the present folder when the run began
    files: dict[str, FileUse] = field(default_factory=dict)  # by absolute path
    answers: dict[tuple[str, str], object] = field(default_factory=dict)  # (question, path as spelled)
    listings: dict[str, tuple[tuple[str, bool], ...] | None] = field(
        default_factory=dict
    )  # name, is a folder
    environment: dict[str, str | None] = field(default_factory=dict)  # as first read by the run
    folders_made: set[str] = field(default_factory=set)
    folders_kept: set[str] = field(default_factory=set)  # it would have made them, but they were there
    own_listings: set[str] = field(default_factory=set)  # those of folders that the run made
    removed: list[str] = field(default_factory=list)  # files and folders that the run did not make
    commands: list[Command] = field(default_factory=list)
    askers: dict[Asker, None] = field(default_factory=dict)
    asked_by_user: set[tuple[str, str]] = field(
        default_factory=set
    )  # of the answers, those no library wanted
    asks_folder: bool = False
    reads_stdin: bool = False
    unseen: str = ""  # why something was not noted
    lost: str = ""  # an effect of the run that nothing brings back
    names: dict[str, str] = field(default_factory=dict)  # looked up by a library, with their digests
    modules: set[str] = field(default_factory=set)  # local ones, loaded or asked for by name
    states_read: set[str] = field(default_factory=set)  # of global random generators
    start: object = None  # what `AT_START` noted of the process
    bindings: dict[str, object] = field(default_factory=dict)  # the notebook's when the run began; not sent
    _set_here: set[str] = field(default_factory=set)  # environment variables that the run set itself

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "bindings": {}}

    def made(self, path: str) -> bool:
        """Whether the run itself made what lies at a path; where nothing lies, it did not."""
        use = self.files.get(path)
        if use is not None and use.is_made:
            return True
        is_inside = any(path == folder or path.startswith(folder + os.sep) for folder in self.folders_made)
        return is_inside and os.path.lexists(path)

    def spelled(self, path: str) -> str:
        """A path as the user wrote it, unless that means another place since the run changed the folder."""
        if os.path.isabs(path) or plain_getcwd() == self.folder:
            return path
        return os.path.join(plain_getcwd(), path)


class FileWatch:
    """Record what the calling thread, and threads started or executors used meanwhile, ask for.

    >>> with FileWatch() as seen:
    ...     text = open("notes.txt").read()
    >>> [use.spelled for use in seen.files.values()]
    ['notes.txt']
    """

    def __init__(self) -> None:
        self.seen = Seen(plain_getcwd())
        self._thread = 0
        self._others: frozenset[object] = frozenset()  # threads, or the numbers of those Python did not start

    def __enter__(self) -> Seen:
        _prepare()
        for note in AT_START:
            note(self.seen)
        self._thread = threading.get_ident()
        self._others = frozenset(map(_thread_of, sys._current_frames()))
        with _patch_lock:
            if not watches:
                for begin, _ in WHILE_WATCHED:
                    begin()
            watches.append(self)
        return self.seen

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _patch_lock:
            watches.remove(self)
            if not watches:
                for _, end in WHILE_WATCHED:
                    end()

    def concerns(self, thread: int) -> bool:
        """Whether what a thread does belongs to the run."""
        if thread == self._thread:
            return True
        running = _thread_of(thread)
        if isinstance(running, threading.Thread) and running.name.startswith(_INFRASTRUCTURE):
            return False
        return running not in self._others or _is_executor(running)


def watch() -> FileWatch:
    """A watch for a `with` statement."""
    return FileWatch()


@contextmanager
def unwatched() -> Iterator[None]:
    """What this thread does inside is nobody's business: our own reading and writing."""
    before = getattr(_mine, "quiet", False)
    _mine.quiet = True
    try:
        yield
    finally:
        _mine.quiet = before


@contextmanager
def bookkeeping() -> Iterator[None]:
    """Our own work inside a call of the user's: unwatched, and never raising.

    What fails here was not seen, so that the run cannot be stored: the rows of its trace would be incomplete.
    """
    before = getattr(_mine, "quiet", False)
    _mine.quiet = True
    try:
        yield
    except Exception as error:
        for watching in list(watches):
            watching.seen.unseen = f"{type(error).__name__}: {error}"
    finally:
        _mine.quiet = before


AT_START: list[Callable[[Seen], None]] = []
"""What else is noted when a watch begins."""

ON_NAMES: list[Callable[[Seen, Mapping[str, Any], Sequence[str]], None]] = []
"""Told the names of the notebook that a library may look up in the frame that it asked for."""

WHILE_WATCHED: list[tuple[Callable[[], None], Callable[[], None]]] = []
"""What is done when the first of the watches begins, and when the last ends."""

watches: list[FileWatch] = []
"""Those that are active."""
_patch_lock = threading.RLock()
_mine = threading.local()
_prepared = False

_INFRASTRUCTURE = (
    "ipyparcache",
    "IOPub",
    "Heartbeat",
    "Control",
    "subshell",
    "IPythonHistory",
    "tqdm_monitor",
)


def _thread_of(number: int) -> object:
    """The thread with this number; numbers are given to later threads again, so they tell little."""
    return threading._active.get(number, number)  # type: ignore[attr-defined]


def _is_executor(thread: object) -> bool:
    executors = sys.modules.get("concurrent.futures.thread")
    return executors is not None and thread in executors._threads_queues


def is_watching() -> bool:
    """Whether any run is watched just now."""
    return bool(watches)


def is_quiet() -> bool:
    """Whether this thread does our own work just now."""
    return bool(getattr(_mine, "quiet", False))


def concerned() -> list[Seen]:
    """What the runs have seen that the calling thread belongs to."""
    thread = threading.get_ident()
    return [watching.seen for watching in list(watches) if watching.concerns(thread)]


def _prepare() -> None:
    global _prepared
    if not _prepared:
        _prepared = True
        from ipyparcache.digest import audited, unaudited  # noqa: F401  # what listens registers itself

        sys.addaudithook(audited.hear)


def path_of(path: Any, folder: int | None = None) -> str | None:
    """A path as text, as spelled; None for what names no file (a descriptor, standard streams)."""
    if isinstance(path, int) or path is None:
        return _path_of_descriptor(path) if isinstance(path, int) and folder == -2 else None
    try:
        text = os.fsdecode(os.fspath(path))
    except (TypeError, ValueError):
        return None
    if folder is not None and folder >= 0 and not os.path.isabs(text):
        base = _path_of_descriptor(folder)
        return os.path.join(base, text) if base else None
    return text


def _path_of_descriptor(descriptor: int) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None


def absolute(path: str) -> str:
    """A path from the present folder."""
    return os.path.normpath(path if os.path.isabs(path) else os.path.join(plain_getcwd(), path))


def signature_of(path: str) -> Signature | None:
    """Size, modification and change time, inode; None where there is no such file."""
    try:
        facts = plain_stat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def use_of(seen: Seen, path: str) -> FileUse:
    """What a run did with a file, noted from now on if it was not before."""
    full = absolute(path)
    use = seen.files.get(full)
    if use is None:
        use = seen.files[full] = FileUse(seen.spelled(path))
        use.before = signature_of(full)
        use.existed = use.before is not None
        use.is_made = use.existed and any(full.startswith(folder + os.sep) for folder in seen.folders_made)
    return use


def file_content(path: str) -> bytes | None:
    """BLAKE3 of a file's bytes; None where there is none."""
    from blake3 import blake3

    hasher = blake3(max_threads=blake3.AUTO)
    try:
        if plain_stat(path).st_size >= 1 << 20:
            hasher.update_mmap(path)
        else:
            with open(path, "rb") as file:
                hasher.update(file.read())
    except OSError:
        return None
    return hasher.digest()


def answer_to(question: str, path: str) -> object:
    """What the file system says now to a question such as `isfile` or `size`; None where nothing is there.

    Of a module, under `find_spec`, whether there is one.
    """
    if question == "find_spec":
        return modules.is_module(path) or modules.can_be_found(path)
    follow = question not in ("lexists", "islink", "lstat")
    try:
        facts = plain_stat(path) if follow else plain_lstat(path)
    except (OSError, ValueError):
        return None if question in ("size", "mtime", "inode", "stat", "lstat") else False
    return _answer(question, facts)


def _answer(question: str, facts: os.stat_result) -> object:
    if question == "isfile":
        return stat_module.S_ISREG(facts.st_mode)
    if question == "isdir":
        return stat_module.S_ISDIR(facts.st_mode)
    if question == "islink":
        return stat_module.S_ISLNK(facts.st_mode)
    if question == "size":
        return facts.st_size
    if question == "mtime":
        return facts.st_mtime_ns
    if question == "inode":
        return [facts.st_dev, facts.st_ino]
    if question in ("stat", "lstat"):
        return [facts.st_mode, facts.st_size, facts.st_mtime_ns]
    return True


def listing_of(path: str) -> tuple[tuple[str, bool], ...] | None:
    """Names in a folder, sorted, with whether each is a folder itself; None where there is no folder."""
    try:
        with os.scandir(path) as entries:
            return tuple(
                sorted((entry.name, entry.is_dir()) for entry in entries if entry.name != "__pycache__")
            )
    except OSError:
        return None


def note_loading(name: str) -> None:
    """Note that a local module is being executed, for every run that this thread is part of."""
    for seen in concerned():
        seen.modules.add(name)
