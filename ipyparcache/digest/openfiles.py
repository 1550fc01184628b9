"""What a run asks of the file system, the environment and the console.

One audit hook, added once and for ever as hooks cannot be removed, looks at the watches that are active; it
never raises. What raises no event is seen by `unaudited`.

Who asks decides what counts: the notebook and local modules always, a distribution unless it is being
imported or looks after its own configuration and fonts; threads that were there before the run do not count,
but for those of executors, which the run may have given work.
"""

from __future__ import annotations

import os
import re
import stat as stat_module
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

from ipyparcache.digest import modules
from ipyparcache.digest.askers import asker_of, is_ignored

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
    start: object = None  # what `AT_START` noted of the process
    bindings: dict[str, object] = field(default_factory=dict)  # the notebook's when the run began; not sent
    _set_here: set[str] = field(default_factory=set)  # environment variables that the run set itself

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "bindings": {}}

    def made(self, path: str) -> bool:
        """Whether the run itself made what lies at a path."""
        use = self.files.get(path)
        if use is not None and use.is_made:
            return True
        return any(path == folder or path.startswith(folder + os.sep) for folder in self.folders_made)

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
            if not _watches:
                for begin, _ in WHILE_WATCHED:
                    begin()
            _watches.append(self)
        return self.seen

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _patch_lock:
            _watches.remove(self)
            if not _watches:
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
        for watching in list(_watches):
            watching.seen.unseen = f"{type(error).__name__}: {error}"
    finally:
        _mine.quiet = before


AT_START: list[Callable[[Seen], None]] = []
"""What else is noted when a watch begins."""

ON_NAMES: list[Callable[[Seen, Mapping[str, Any], Sequence[str]], None]] = []
"""Told the names of the notebook that a library may look up in the frame that it asked for."""

WHILE_WATCHED: list[tuple[Callable[[], None], Callable[[], None]]] = []
"""What is done when the first of the watches begins, and when the last ends."""

_watches: list[FileWatch] = []
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
    return bool(_watches)


def is_quiet() -> bool:
    """Whether this thread does our own work just now."""
    return bool(getattr(_mine, "quiet", False))


def concerned() -> list[Seen]:
    """What the runs have seen that the calling thread belongs to."""
    thread = threading.get_ident()
    return [watching.seen for watching in list(_watches) if watching.concerns(thread)]


# ---- the audit hook


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watches:
        return
    handler = _HANDLERS.get(event)
    if handler is None or getattr(_mine, "quiet", False):
        return
    with bookkeeping():  # asking for a frame raises an event, too
        for seen in concerned():
            handler(seen, sys._getframe(1), *arguments)


def _prepare() -> None:
    global _prepared
    if not _prepared:
        _prepared = True
        from ipyparcache.digest import unaudited  # noqa: F401  # registers itself

        sys.addaudithook(_hook)


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


def _use(seen: Seen, path: str) -> FileUse:
    full = absolute(path)
    use = seen.files.get(full)
    if use is None:
        use = seen.files[full] = FileUse(seen.spelled(path))
        use.before = signature_of(full)
        use.existed = use.before is not None
        if any(full.startswith(folder + os.sep) for folder in seen.folders_made):
            use.is_made = True
    return use


def note_open(
    seen: Seen, frame: FrameType, path: Any, mode: Any, flags: Any, folder: int | None = None
) -> None:
    """Note that a file is opened, for reading or writing; the arguments are those of the audit event."""
    spelled = path_of(path, folder)
    if spelled is None:
        return
    full = absolute(spelled)
    if is_ignored(full, asker_of(frame)):
        return
    flags = flags if isinstance(flags, int) else 0
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    known = seen.files.get(full)
    appends = writes == os.O_WRONLY and bool(flags & os.O_APPEND)
    if known is not None:
        known.is_log = known.is_log and appends
    if not writes:
        try:
            if stat_module.S_ISDIR(plain_stat(full).st_mode):
                return
        except OSError:
            pass
        use = _use(seen, spelled)
        if not use.is_made and not use.is_written:
            use.is_read = True
        return
    _on_write(seen, spelled, keeps=not flags & (os.O_TRUNC | os.O_EXCL))
    if known is None:
        seen.files[full].is_log = appends
    if flags & os.O_EXCL:
        seen.answers.setdefault(("exists", seen.spelled(spelled)), False)
        seen.asked_by_user.add(("exists", seen.spelled(spelled)))


def _on_write(seen: Seen, path: str, keeps: bool) -> None:
    """Note that a file is about to be written; with `keeps`, on top of what it holds."""
    use = _use(seen, path)
    if keeps and not use.is_made and not use.is_written:
        use.is_read = True
        use.content = file_content(absolute(path))
    use.is_written = True
    use.is_made = True


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


def _on_listing(seen: Seen, frame: FrameType, path: Any) -> None:
    spelled = "." if path is None else path_of(path, -2 if isinstance(path, int) else None)
    if spelled is None or is_ignored(absolute(spelled), asker_of(frame)) or seen.made(absolute(spelled)):
        return
    seen.listings.setdefault(seen.spelled(spelled), listing_of(absolute(spelled)))


def listing_of(path: str) -> tuple[tuple[str, bool], ...] | None:
    """Names in a folder, sorted, with whether each is a folder itself; None where there is no folder."""
    try:
        with os.scandir(path) as entries:
            return tuple(
                sorted((entry.name, entry.is_dir()) for entry in entries if entry.name != "__pycache__")
            )
    except OSError:
        return None


def _on_sqlite(seen: Seen, frame: FrameType, database: Any) -> None:
    spelled = path_of(database)
    if spelled is None or spelled in ("", ":memory:"):
        return
    if spelled.startswith("file:"):
        if ":memory:" in spelled or "mode=memory" in spelled:
            return
        spelled = spelled[len("file:") :].partition("?")[0]
    if not is_ignored(absolute(spelled), asker_of(frame)):
        _on_write(seen, spelled, keeps=True)
        for log in (f"{spelled}-wal", f"{spelled}-journal"):  # what was committed may still lie there
            if os.path.exists(absolute(log)):
                _on_write(seen, log, keeps=True)


def _on_remove(seen: Seen, frame: FrameType, path: Any, folder: int = -1) -> None:
    spelled = path_of(path, folder)
    if spelled is None or is_ignored(absolute(spelled), asker_of(frame)):
        return
    full = absolute(spelled)
    use = seen.files.get(full)
    if seen.made(full) and (use is None or not use.existed):
        seen.files.pop(full, None)
    elif os.path.lexists(full):
        seen.removed.append(spelled)


def _on_remove_folder(seen: Seen, frame: FrameType, path: Any, folder: int = -1) -> None:
    spelled = path_of(path, folder)
    if spelled is None or is_ignored(absolute(spelled), asker_of(frame)):
        return
    full = absolute(spelled)
    if full in seen.folders_made:
        seen.folders_made.discard(full)
    elif not seen.made(full) and os.path.lexists(full):
        seen.removed.append(spelled)


def _on_remove_tree(seen: Seen, frame: FrameType, path: Any, folder: Any = None) -> None:
    spelled = path_of(path, folder)
    if spelled is None or is_ignored(absolute(spelled), asker_of(frame)):
        return
    full = absolute(spelled)
    if not seen.made(full):
        if os.path.lexists(full):
            seen.removed.append(spelled)
        return
    for known in [known for known in seen.files if known.startswith(full + os.sep)]:
        del seen.files[known]


def _on_rename(
    seen: Seen, frame: FrameType, source: Any, target: Any, from_folder: int = -1, to_folder: int = -1
) -> None:
    old, new = path_of(source, from_folder), path_of(target, to_folder)
    if old is None or new is None or is_ignored(absolute(old), asker_of(frame)):
        return
    full, there = absolute(old), absolute(new)
    use = seen.files.get(full)
    if full in seen.folders_made:
        seen.folders_made.discard(full)
        seen.folders_made.add(there)
        for known in [known for known in seen.files if known.startswith(full + os.sep)]:
            moved = seen.files.pop(known)
            moved.spelled = os.path.join(new, os.path.relpath(known, full))
            seen.files[there + known[len(full) :]] = moved
    elif seen.made(full) and (use is None or not use.existed):
        seen.files.pop(full, None)
        replaced = _use(seen, new)
        replaced.is_written = replaced.is_made = True
    else:
        seen.removed.append(old)


def _on_make_folder(seen: Seen, frame: FrameType, path: Any, mode: int = 0, folder: int = -1) -> None:
    spelled = path_of(path, folder)
    if spelled is None or is_ignored(absolute(spelled), asker_of(frame)):
        return
    full = absolute(spelled)
    if not os.path.lexists(full):
        seen.folders_made.add(full)


def _on_link(seen: Seen, frame: FrameType, source: Any, target: Any, *folders: int) -> None:
    spelled = path_of(target, folders[-1] if folders else None)
    if spelled is not None and not is_ignored(absolute(spelled), asker_of(frame)):
        _on_write(seen, spelled, keeps=False)


def _on_mark(seen: Seen, frame: FrameType, path: Any, *_rest: Any) -> None:
    """Mode, owner or times of a file are set: of one that was there before, no hit brings that back."""
    spelled = path_of(path)
    if spelled is None or is_ignored(absolute(spelled), asker_of(frame)):
        return
    if not seen.made(absolute(spelled)) and os.path.lexists(absolute(spelled)):
        seen.removed.append(spelled)


def _on_truncate(seen: Seen, frame: FrameType, path: Any, length: int = 0) -> None:
    spelled = path_of(path)
    if spelled is not None and not is_ignored(absolute(spelled), asker_of(frame)):
        _on_write(seen, spelled, keeps=length > 0)


# Programs that libraries start to learn about the machine: their answer changes nothing that a cell computes.
_MACHINE_PROGRAMS = frozenset({"lscpu", "fc-list", "uname", "ldconfig", "nvidia-smi", "getconf", "sysctl"})
_ENGINES = frozenset({"joblib", "loky", "ipyparcache", "multiprocessing", "distributed", "ray"})


def _on_command(seen: Seen, frame: FrameType, *arguments: Any) -> None:
    who, name = asker_of(frame)
    program = _program_in(arguments)
    if who in ("ours", "import") or (who == "library" and (name in _ENGINES or program in _MACHINE_PROGRAMS)):
        return
    if frame.f_globals.get("__name__", "").partition(".")[0] == "multiprocessing":
        return  # a pool of processes: what it leaves running is looked at when the cell has ended
    seen.commands.append(Command(_what_starts(frame), program))


def _what_starts(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _program_in(arguments: tuple[Any, ...]) -> str:
    first = arguments[0] if arguments else ""
    if isinstance(first, (list, tuple)):
        first = first[0] if first else ""
    try:
        text = os.fsdecode(first)
    except TypeError:
        text = str(first)
    words = text.split()
    return os.path.basename(words[0]) if words else ""


_NAME_ASKERS = frozenset(
    [
        "collections",
        "enum",
        "typing",
        "warnings",
        "logging",
        "functools",
        "abc",
        "importlib",
        "dataclasses",
        "types",
        "string",
        "traceback",
    ]
)


def _on_frame(seen: Seen, frame: FrameType, asked: FrameType | None = None) -> None:
    name = str(frame.f_globals.get("__name__", ""))
    who = frame
    if name == "inspect" and frame.f_back is not None:
        who = frame.f_back
        name = str(who.f_globals.get("__name__", ""))
    if name.partition(".")[0] in _NAME_ASKERS or modules.origin_of(name) != "library":
        return
    if name.partition(".")[0] in ("ipyparcache", "IPython", "ipykernel", "zmq", "traitlets"):
        return
    above: FrameType | None = who
    texts: list[str] = []
    for _ in range(60):
        if above is None:
            return
        above_name = above.f_globals.get("__name__")
        if above_name in modules.NOTEBOOK_MODULES:
            break
        if above.f_code.co_name == "<module>" and modules.origin_of(str(above_name)) == "library":
            return
        texts += _texts_in(above)
        above = above.f_back
    else:
        return
    seen.askers[Asker(name, above.f_lineno)] = None
    words = {word for text in texts for word in _IDENTIFIER.findall(text)}
    names = [word for word in words if word in above.f_globals]
    for note in ON_NAMES:
        note(seen, above.f_globals, names)


_IDENTIFIER = re.compile(r"[^\W\d]\w*")


def _texts_in(frame: FrameType) -> list[str]:
    """Strings that a function of a library was handed, or holds, while it asks for the caller's frame."""
    found = []
    for value in frame.f_locals.values():
        for part in value if type(value) in (tuple, list) and len(value) < 100 else (value,):
            if type(part) is str and len(part) < 10_000:
                found.append(part)
    return found


def _on_unpickle(seen: Seen, frame: FrameType, module: Any, name: Any) -> None:
    """A class is looked up for an object in a pickle: its code is an input."""
    if not isinstance(module, str) or not isinstance(name, str) or not modules.is_user_code(module):
        return
    if asker_of(frame)[0] == "ours":
        return
    if module in modules.NOTEBOOK_MODULES:
        namespace = vars(sys.modules[module])
        top = name.partition(".")[0]
        if top in namespace:
            for note in ON_NAMES:
                note(seen, namespace, [top])
    else:
        seen.modules.add(module)


def note_loading(name: str) -> None:
    """Note that a local module is being executed, for every run that this thread is part of."""
    for seen in concerned():
        seen.modules.add(name)


def _on_input(seen: Seen, frame: FrameType, *prompt: Any) -> None:
    seen.reads_stdin = True


_HANDLERS: dict[str, Callable[..., None]] = {
    "open": note_open,
    "os.listdir": _on_listing,
    "os.scandir": _on_listing,
    "sqlite3.connect": _on_sqlite,
    "os.remove": _on_remove,
    "os.rmdir": _on_remove_folder,
    "shutil.rmtree": _on_remove_tree,
    "os.rename": _on_rename,
    "os.mkdir": _on_make_folder,
    "os.link": _on_link,
    "os.symlink": _on_link,
    "os.truncate": _on_truncate,
    "os.chmod": _on_mark,
    "os.chown": _on_mark,
    "os.utime": _on_mark,
    "os.setxattr": _on_mark,
    "subprocess.Popen": _on_command,
    "os.system": _on_command,
    "os.exec": _on_command,
    "os.posix_spawn": _on_command,
    "os.spawn": _on_command,
    "os.fork": _on_command,
    "os.forkpty": _on_command,
    "pty.spawn": _on_command,
    "sys._getframe": _on_frame,
    "pickle.find_class": _on_unpickle,
    "builtins.input": _on_input,
}
